/* What native.c is told of layers and a call, its memory, and the way between PyTorch's layout and its own.
 *
 * Activations are [batch, height, width, channels], channels filled up with zeros to whole vectors, with the border of
 * zeros that the next convolution (values) or the one before (gradients) wants. Weights are [inputs, outputs].
 */
#include "native_products.h"

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
