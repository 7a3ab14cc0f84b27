/* The layers of native.c: what they keep, forward, backward, and their own step of SGD.
 *
 * Activations are [batch, height, width, channels], channels filled up with zeros to whole vectors, with the border of
 * zeros that the next convolution (values) or the one before (gradients) wants. Weights are [inputs, outputs].
 */
#include <math.h>

#include "native_products.h"

#define EXP(x) (sizeof(T) == sizeof(float) ? (T)expf((float)(x)) : (T)exp((double)(x)))

enum { DENSE, CONV, NORM, RELU, POOL };
enum { CROSS_ENTROPY, SQUARED_ERROR };

/* by p of device i, in PyTorch's layout */
typedef struct {
  const T *p;
  int64_t step;
  const double *by;
  int64_t by_step;
} push;

/* An entry of a layer, in PyTorch's layout: of device i it comes from p + i * step, and goes to to + i * size. */
typedef struct {
  const T *p;
  int64_t step;
  T *to; /* 0: it does not change */
  int64_t size;
  int64_t pushes;
  push push[2];       /* what every step adds */
  const double *beta; /* what every step leaves of it; 0: it is not trained */
  int64_t beta_step;
} entry;

typedef struct {
  int64_t kind, in_c, in_h, in_w, out_c, out_h, out_w;
  int64_t kernel_h, kernel_w, pad_h, pad_w, stride_h, stride_w;
  int64_t learns; /* does a norm take the statistics of the batch? */
  double momentum, eps;
  entry weight, bias, mean, var;
} layer;

typedef struct {
  int64_t layers, steps, batch, loss;
  const T *x;            /* [n, in_c, in_h, in_w] the pool */
  const int64_t *labels; /* [n], or */
  const T *values;       /* [n, out_c] */
  const int64_t *rows;   /* [devices, steps, batch] */
  const uint8_t *live;   /* [devices, steps] */
  const double *scale;   /* what a sum over gradients of samples is multiplied with */
  int64_t scale_step;
} call;

/* ---- memory ---- */

typedef struct {
  char *base; /* 0: only counts */
  size_t used;
} arena;

static void *reserve(arena *a, size_t bytes) {
  void *out = a->base ? a->base + a->used : NULL;
  a->used += (bytes + LINE - 1) / LINE * LINE;
  return out;
}

#define RESERVE(a, kind, n) ((kind *)reserve(a, sizeof(kind) * (size_t)(n)))

/* Values and gradients of a batch at one place of the chain; v and g are at the first pixel inside of the border. */
typedef struct {
  int64_t h, w, c, cs;           /* cs: from pixel to pixel */
  int64_t v_row, v_image, g_row, g_image;
  int64_t v_h, v_w, g_h, g_w;    /* borders */
  T *v, *g;
} values;

/* A layer at work. */
typedef struct {
  const layer *l;
  values *in, *out;
  int64_t inputs, columns; /* of the weight: rows, and outputs filled up */
  int64_t further;         /* is the gradient of the input wanted? */
  T *w, *w_push, *b, *b_push, *mean, *var;
  T *grad, *turned, *flat; /* room for a gradient of the weight, for weights or gradients the other way round */
  T *center, *inverse, *sums;
  M *from; /* which value of a window was the largest */
} stage;

static int64_t filled(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

static void open_values(values *t, arena *a, int64_t batch) {
  t->v_row = (t->w + 2 * t->v_w) * t->cs, t->v_image = (t->h + 2 * t->v_h) * t->v_row;
  t->g_row = (t->w + 2 * t->g_w) * t->cs, t->g_image = (t->h + 2 * t->g_h) * t->g_row;
  t->v = RESERVE(a, T, batch * t->v_image + PANEL);
  t->g = RESERVE(a, T, batch * t->g_image + PANEL);
  if (!a->base) return;
  memset(t->v, 0, sizeof(T) * (batch * t->v_image + PANEL));
  memset(t->g, 0, sizeof(T) * (batch * t->g_image + PANEL));
  t->v += t->v_h * t->v_row + t->v_w * t->cs;
  t->g += t->g_h * t->g_row + t->g_w * t->cs;
}

static T *value(const values *t, int64_t n, int64_t y, int64_t x) {
  return t->v + n * t->v_image + y * t->v_row + x * t->cs;
}

static T *slope(const values *t, int64_t n, int64_t y, int64_t x) {
  return t->g + n * t->g_image + y * t->g_row + x * t->cs;
}

#define PIXELS(t, batch)                             \
  for (int64_t n = 0; n < (batch); n++)              \
    for (int64_t y = 0; y < (t)->h; y++)             \
      for (int64_t x = 0; x < (t)->w; x++)

/* ---- between PyTorch's layout and ours ---- */

/* [out, in, h, w] <-> [h, w, in filled up, out filled up]; of a dense layer h, w are those of its input.
 * ours = by theirs (+ ours), or the way back. */
static void turn(const stage *s, T by, int more, T *theirs, T *ours, int back) {
  const layer *l = s->l;
  int64_t h = l->kind == CONV ? l->kernel_h : l->in_h, w = l->kind == CONV ? l->kernel_w : l->in_w;
  for (int64_t o = 0; o < l->out_c; o++)
    for (int64_t c = 0; c < l->in_c; c++)
      for (int64_t p = 0; p < h * w; p++) {
        T *mine = ours + (p * s->in->cs + c) * s->columns + o, *other = theirs + (o * l->in_c + c) * h * w + p;
        if (back) *other = *mine;
        else *mine = by * *other + (more ? *mine : 0);
      }
}

/* The same for h = w = 1. Their rows end where the next one begins: what fills no vector goes one by one. */
static void turn_flat(const stage *s, T by, int more, T *theirs, T *ours, int back) {
  int64_t I = s->l->in_c, O = s->l->out_c, whole = I / LANES * LANES;
  if (back) across(whole, O, 1, 0, ours, s->columns, theirs, I);
  else across(O, whole, by, more, theirs, I, ours, s->columns);
  for (int64_t c = whole; c < I; c++)
    for (int64_t r = 0; r < O; r++) {
      T *mine = ours + c * s->columns + r, *other = theirs + r * I + c;
      if (back) *other = *mine;
      else *mine = by * *other + (more ? *mine : 0);
    }
}

static void copy(int64_t n, T by, int more, const T *from, T *to) {
  for (int64_t i = 0; i < n; i++) to[i] = by * from[i] + (more ? to[i] : 0);
}

static void turn_weight(const stage *s, T by, int more, const T *theirs, T *ours) {
  if (s->l->kind == NORM) copy(s->l->out_c, by, more, theirs, ours);
  else if (s->l->kind == DENSE && s->l->in_h * s->l->in_w == 1) turn_flat(s, by, more, (T *)theirs, ours, 0);
  else turn(s, by, more, (T *)theirs, ours, 0);
}

static void load(const stage *s, int64_t device) {
  const layer *l = s->l;
  if (l->weight.p) turn_weight(s, 1, 0, l->weight.p + device * l->weight.step, s->w);
  if (l->bias.p) copy(l->out_c, 1, 0, l->bias.p + device * l->bias.step, s->b);
  if (l->mean.p) copy(l->out_c, 1, 0, l->mean.p + device * l->mean.step, s->mean);
  if (l->var.p) copy(l->out_c, 1, 0, l->var.p + device * l->var.step, s->var);
  for (int i = 0; i < l->weight.pushes; i++) {
    const push *p = l->weight.push + i;
    turn_weight(s, (T)p->by[device * p->by_step], i, p->p + device * p->step, s->w_push);
  }
  for (int i = 0; i < l->bias.pushes; i++) {
    const push *p = l->bias.push + i;
    copy(l->out_c, (T)p->by[device * p->by_step], i, p->p + device * p->step, s->b_push);
  }
}

static void save(const stage *s, int64_t device) {
  const layer *l = s->l;
  size_t out = sizeof(T) * (size_t)l->out_c;
  T *weight = l->weight.to + device * l->weight.size;
  if (l->weight.to && l->kind == NORM) memcpy(weight, s->w, out);
  else if (l->weight.to && l->kind == DENSE && l->in_h * l->in_w == 1) turn_flat(s, 1, 0, weight, s->w, 1);
  else if (l->weight.to) turn(s, 1, 0, weight, s->w, 1);
  if (l->bias.to) memcpy(l->bias.to + device * l->bias.size, s->b, out);
  if (l->mean.to) memcpy(l->mean.to + device * l->mean.size, s->mean, out);
  if (l->var.to) memcpy(l->var.to + device * l->var.size, s->var, out);
}

/* ---- layers ---- */

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
