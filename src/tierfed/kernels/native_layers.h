/* The layers of native.c: forward, backward, and their own step of SGD. */
#include <math.h>

#include "native_memory.h"

#define EXP(x) (sizeof(T) == sizeof(float) ? (T)expf((float)(x)) : (T)exp((double)(x)))

/* w = beta w + push - scale grad */
static void descend(const entry *e, int64_t device, T *w, const T *push, T scale, const T *grad, int64_t n) {
  T beta = (T)e->beta[device * e->beta_step];
  if (push)
    for (int64_t i = 0; i < n; i++) w[i] = beta * w[i] + push[i] - scale * grad[i];
  else
    for (int64_t i = 0; i < n; i++) w[i] = beta * w[i] - scale * grad[i];
}

static const T *pushed(const entry *e, const T *room) { return e->pushes ? room : NULL; }

/* The sum of gradients over batch and pixels [cs]. */
static void summed(const values *t, int64_t batch, T *sums) {
  memset(sums, 0, sizeof(T) * (size_t)t->cs);
  PIXELS(t, batch) {
    const T *g = slope(t, n, y, x);
    for (int64_t c = 0; c < t->cs; c++) sums[c] += g[c];
  }
}

static void dense(const stage *s, const T *const *samples, int64_t batch) {
  product(batch, samples, 0, 1, s->inputs, s->w, s->columns, s->b, s->out->v, s->out->cs);
}

static void dense_back(const stage *s, int64_t device, const T *const *samples, int64_t batch, T scale) {
  const layer *l = s->l;
  const T *slopes[MOST], *rows[ROWS];
  int64_t wide = filled(batch), pixels = s->in->h * s->in->w;
  if (s->further) {
    across(batch, l->out_c, 1, 0, s->out->g, s->out->cs, s->turned, wide);
    for (int64_t i = 0, r; i < s->inputs; i += r) {
      r = tile(s->inputs - i);
      for (int64_t m = 0; m < r; m++) rows[m] = s->w + (i + m) * s->columns;
      for (int64_t n = 0; n < wide; n += PANEL)
        nn(r, least(PANEL, wide - n), rows, 0, 1, l->out_c, s->turned + n, wide, s->sums, s->flat + i * wide + n, wide);
    }
    for (int64_t p = 0; p < pixels; p++)
      across(s->in->c, batch, 1, 0, s->flat + p * s->in->cs * wide, wide, slope(s->in, 0, p / s->in->w, p % s->in->w),
             s->in->g_image);
  }
  if (l->weight.beta) {
    T beta = (T)l->weight.beta[device * l->weight.beta_step];
    for (int64_t k = 0; k < batch; k += MOST) { /* the first part of the batch takes along all that needs no gradient */
      int64_t some = least(MOST, batch - k);
      for (int64_t n = 0; n < some; n++) slopes[n] = s->out->g + (k + n) * s->out->cs;
      outer(s->inputs, samples + k, 0, some, slopes, s->columns, k ? 1 : beta, -scale,
            k ? NULL : pushed(&l->weight, s->w_push), s->w);
    }
  }
  if (l->bias.beta) {
    summed(s->out, batch, s->grad);
    descend(&l->bias, device, s->b, pushed(&l->bias, s->b_push), scale, s->grad, s->columns);
  }
}

/* out(y, x) = first + sum over the window at (y, x) of a picture with rows of `row` and pixels of `cs` */
static void slide(const T *picture, int64_t row, int64_t cs, int64_t window_h, int64_t window_w, const T *w,
                  const T *first, T *out, int64_t out_row, int64_t out_cs, int64_t h, int64_t wide, int64_t columns) {
  const T *a[ROWS];
  for (int64_t n = 0; n < columns; n += PANEL)
    for (int64_t y = 0; y < h; y++)
      for (int64_t x = 0, r; x < wide; x += r) {
        r = tile(wide - x);
        for (int64_t m = 0; m < r; m++) a[m] = picture + y * row + (x + m) * cs;
        nn(r, least(PANEL, columns - n), a, row, window_h, window_w * cs, w + n, columns, first + n,
           out + y * out_row + x * out_cs + n, out_cs);
      }
}

static void conv(const stage *s, int64_t batch) {
  const layer *l = s->l;
  const values *in = s->in, *out = s->out;
  for (int64_t n = 0; n < batch; n++)
    slide(value(in, n, -l->pad_h, -l->pad_w), in->v_row, in->cs, l->kernel_h, l->kernel_w, s->w, s->b,
          value(out, n, 0, 0), out->v_row, out->cs, out->h, out->w, s->columns);
}

static void conv_back(const stage *s, int64_t device, int64_t batch, T scale) {
  const layer *l = s->l;
  const values *in = s->in, *out = s->out;
  int64_t kh = l->kernel_h, kw = l->kernel_w;
  if (s->further) { /* the same with the weights turned by 180 degrees, inputs and outputs exchanged */
    for (int64_t r = 0; r < kh * kw; r++)
      for (int64_t o = 0; o < out->cs; o++)
        for (int64_t c = 0; c < in->cs; c++)
          s->turned[(r * out->cs + o) * in->cs + c] = s->w[((kh * kw - 1 - r) * in->cs + c) * s->columns + o];
    for (int64_t n = 0; n < batch; n++)
      slide(slope(out, n, l->pad_h - kh + 1, l->pad_w - kw + 1), out->g_row, out->cs, kh, kw, s->turned, s->sums,
            slope(in, n, 0, 0), in->g_row, in->cs, in->h, in->w, in->cs);
  }
  if (l->weight.beta) {
    const T *a[MOST], *b[MOST];
    int64_t total = s->inputs * s->columns, some = 0, left = batch * out->h * out->w;
    memset(s->grad, 0, sizeof(T) * (size_t)total);
    PIXELS(out, batch) { /* MOST pixels at once stay in the first cache */
      a[some] = value(in, n, y - l->pad_h, x - l->pad_w), b[some++] = slope(out, n, y, x);
      if (--left && some < MOST) continue;
      for (int64_t r = 0; r < kh; r++)
        outer(kw * in->cs, a, r * in->v_row, some, b, s->columns, 1, 1, NULL, s->grad + r * kw * in->cs * s->columns);
      some = 0;
    }
    descend(&l->weight, device, s->w, pushed(&l->weight, s->w_push), scale, s->grad, total);
  }
  if (l->bias.beta) {
    summed(out, batch, s->grad);
    descend(&l->bias, device, s->b, pushed(&l->bias, s->b_push), scale, s->grad, s->columns);
  }
}

static void norm(const stage *s, int64_t batch) {
  const layer *l = s->l;
  const values *in = s->in;
  int64_t cs = in->cs, count = batch * in->h * in->w;
  T *restrict center = s->center, *restrict inverse = s->inverse, *restrict sums = s->sums;
  memcpy(center, s->mean, sizeof(T) * (size_t)cs);
  memcpy(sums, s->var, sizeof(T) * (size_t)cs);
  if (l->learns) {
    memset(center, 0, sizeof(T) * (size_t)cs), memset(sums, 0, sizeof(T) * (size_t)cs);
    PIXELS(in, batch) {
      const T *v = value(in, n, y, x);
      for (int64_t c = 0; c < cs; c++) center[c] += v[c];
    }
    for (int64_t c = 0; c < cs; c++) center[c] /= (T)count;
    PIXELS(in, batch) {
      const T *v = value(in, n, y, x);
      for (int64_t c = 0; c < cs; c++) sums[c] += (v[c] - center[c]) * (v[c] - center[c]);
    }
    T rate = (T)l->momentum, unbiased = (T)count / (T)(count - 1);
    for (int64_t c = 0; c < cs; c++) {
      sums[c] /= (T)count;
      s->mean[c] = (1 - rate) * s->mean[c] + rate * center[c];
      s->var[c] = (1 - rate) * s->var[c] + rate * unbiased * sums[c];
    }
  }
  for (int64_t c = 0; c < cs; c++) inverse[c] = 1 / (T)sqrt((double)sums[c] + l->eps);
  for (int64_t c = 0; c < cs; c++) sums[c] = inverse[c] * s->w[c];
  PIXELS(in, batch) {
    const T *v = value(in, n, y, x);
    T *out = value(s->out, n, y, x);
    for (int64_t c = 0; c < cs; c++) out[c] = (v[c] - center[c]) * sums[c] + s->b[c];
  }
}

static void norm_back(const stage *s, int64_t device, int64_t batch, T scale) {
  const layer *l = s->l;
  const values *in = s->in;
  int64_t cs = in->cs;
  T *restrict plain = s->grad, *restrict along = s->grad + cs;
  T share = l->learns ? 1 / (T)(batch * in->h * in->w) : 0;
  memset(plain, 0, sizeof(T) * (size_t)(2 * cs));
  PIXELS(in, batch) {
    const T *v = value(in, n, y, x), *g = slope(s->out, n, y, x);
    for (int64_t c = 0; c < cs; c++) plain[c] += g[c], along[c] += g[c] * (v[c] - s->center[c]) * s->inverse[c];
  }
  if (s->further)
    PIXELS(in, batch) {
      const T *v = value(in, n, y, x), *g = slope(s->out, n, y, x);
      T *to = slope(in, n, y, x);
      for (int64_t c = 0; c < cs; c++) {
        T inner = (v[c] - s->center[c]) * s->inverse[c];
        to[c] = s->w[c] * s->inverse[c] * (g[c] - share * (plain[c] + inner * along[c]));
      }
    }
  if (l->weight.beta) descend(&l->weight, device, s->w, pushed(&l->weight, s->w_push), scale, along, l->out_c);
  if (l->bias.beta) descend(&l->bias, device, s->b, pushed(&l->bias, s->b_push), scale, plain, l->out_c);
}

static void relu(const values *t, int64_t batch) {
  PIXELS(t, batch) {
    T *v = value(t, n, y, x);
    for (int64_t c = 0; c < t->cs; c++) v[c] = v[c] < 0 ? 0 : v[c];
  }
}

static void relu_back(const values *t, int64_t batch) {
  PIXELS(t, batch) {
    const T *v = value(t, n, y, x);
    T *g = slope(t, n, y, x);
    for (int64_t c = 0; c < t->cs; c++) g[c] = v[c] > 0 ? g[c] : 0;
  }
}

static V either(M mask, V yes, V no) { return (V)((mask & (M)yes) | (~mask & (M)no)); }

static void pool(const stage *s, int64_t batch) {
  const layer *l = s->l;
  const values *in = s->in;
  M *from = s->from;
  PIXELS(s->out, batch) {
    const T *v = value(in, n, y * l->stride_h, x * l->stride_w);
    T *out = value(s->out, n, y, x);
    for (int64_t c = 0; c < in->cs; c += LANES, from++) {
      V best = GIVEN(v + c);
      M which = {0};
      for (int64_t i = 0; i < l->kernel_h; i++)
        for (int64_t j = 0; j < l->kernel_w; j++) {
          V other = GIVEN(v + i * in->v_row + j * in->cs + c);
          M more = other > best;
          best = either(more, other, best);
          which = (more & (I)(i * l->kernel_w + j)) | (~more & which);
        }
      AT(out + c) = best;
      *from = which;
    }
  }
}

static void pool_back(const stage *s, int64_t batch) {
  const layer *l = s->l;
  const values *in = s->in;
  const M *from = s->from;
  int overlap = l->stride_h < l->kernel_h || l->stride_w < l->kernel_w;
  if (overlap) PIXELS(in, batch) memset(slope(in, n, y, x), 0, sizeof(T) * (size_t)in->cs);
  PIXELS(s->out, batch) {
    const T *g = slope(s->out, n, y, x);
    T *to = slope(in, n, y * l->stride_h, x * l->stride_w);
    for (int64_t c = 0; c < in->cs; c += LANES, from++)
      for (int64_t i = 0; i < l->kernel_h; i++)
        for (int64_t j = 0; j < l->kernel_w; j++) {
          T *at = to + i * in->g_row + j * in->cs + c;
          V part = (V)((*from == (I)(i * l->kernel_w + j)) & (M)GIVEN(g + c));
          if (overlap) part += AT(at);
          AT(at) = part;
        }
  }
}

/* The gradient of the loss of every sample by the outputs, but for the factor that `scale` has. */
static void differentiate(const call *k, const values *out, const int64_t *rows) {
  for (int64_t n = 0; n < k->batch; n++) {
    const T *v = out->v + n * out->cs;
    T *g = out->g + n * out->cs;
    if (k->loss == SQUARED_ERROR) {
      const T *wanted = k->values + rows[n] * out->c;
      for (int64_t c = 0; c < out->c; c++) g[c] = v[c] - wanted[c];
      continue;
    }
    T most = v[0], sum = 0;
    for (int64_t c = 1; c < out->c; c++) most = v[c] > most ? v[c] : most;
    for (int64_t c = 0; c < out->c; c++) sum += g[c] = EXP(v[c] - most);
    for (int64_t c = 0; c < out->c; c++) g[c] /= sum;
    g[k->labels[rows[n]]] -= 1;
  }
}
