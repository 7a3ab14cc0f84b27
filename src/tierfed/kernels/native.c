/* Local SGD of a chain of layers, for one device after the other: forward, backward and update in one call.
 *
 * A device's model stays in the second cache of a core over all steps. Two products do nearly all of the work
 * (native_products.h). Their operands are rows that pointers lead to, so that samples are read where they lie, and a
 * convolution is the same product with other pointers. tierfed.kernels.native fills `layer` and `call`.
 */
#include "native_layers.h"

typedef struct {
  stage *stages;
  values *places; /* of the input and every output */
  const T **samples, **own; /* rows of the pool; rows of a dense layer's input */
  int64_t first;  /* the first layer that is trained */
} program;

static void open_stage(stage *s, arena *a, int64_t batch) {
  const layer *l = s->l;
  int64_t cs = s->out->cs, weights = cs;
  if (l->kind == DENSE) s->inputs = s->in->h * s->in->w * (s->in->h * s->in->w > 1 ? s->in->cs : s->in->c);
  if (l->kind == CONV) s->inputs = l->kernel_h * l->kernel_w * s->in->cs;
  if (l->kind == DENSE || l->kind == CONV) s->columns = cs, weights = s->inputs * cs;
  if (l->kind == NORM) s->columns = cs;
  if (l->kind == RELU) return;
  if (l->kind == POOL) {
    s->from = RESERVE(a, M, batch * s->out->h * s->out->w * cs / LANES);
    return;
  }
  int64_t wide = filled(batch), most = l->kind == DENSE ? 2 * cs : weights > 2 * cs ? weights : 2 * cs;
  int64_t turned = l->kind == DENSE ? l->out_c * wide : l->kernel_h * l->kernel_w * cs * s->in->cs;
  int64_t side = (cs > s->in->cs ? cs : s->in->cs) + (wide > PANEL ? wide : PANEL);
  T **rooms[] = {&s->w, &s->w_push, &s->b, &s->b_push, &s->mean, &s->var, &s->center, &s->inverse, &s->sums,
                 &s->grad, &s->turned, &s->flat};
  int64_t sizes[] = {weights, l->weight.pushes ? weights : 0, cs, cs, cs, cs, cs, cs, side, most,
                     s->further && l->kind != NORM ? turned : 0, s->further && l->kind == DENSE ? s->inputs * wide : 0};
  for (int i = 0; i < 12; i++) {
    *rooms[i] = RESERVE(a, T, sizes[i] + PANEL);
    if (a->base) memset(*rooms[i], 0, sizeof(T) * (size_t)(sizes[i] + PANEL));
  }
  if (a->base && l->kind == NORM && !l->weight.p)
    for (int64_t c = 0; c < l->out_c; c++) s->w[c] = 1;
}

static int trained(const layer *l) { return l->weight.beta || l->bias.beta; }

static program open_program(const call *k, const layer *layers, arena *a) {
  program p = {.first = k->layers};
  p.stages = RESERVE(a, stage, k->layers);
  p.places = RESERVE(a, values, k->layers + 1);
  p.samples = RESERVE(a, const T *, k->batch);
  p.own = RESERVE(a, const T *, k->batch);
  stage stages[MOST] = {0}; /* also where only bytes are counted */
  values places[MOST + 1] = {0};
  stage *s = a->base ? p.stages : stages;
  values *t = a->base ? p.places : places;
  memset(s, 0, sizeof(stage) * (size_t)k->layers), memset(t, 0, sizeof(values) * (size_t)(k->layers + 1));
  for (int64_t i = k->layers - 1; i >= 0; i--)
    if (trained(layers + i)) p.first = i;
  t[0] = (values){.h = layers->in_h, .w = layers->in_w, .c = layers->in_c};
  t[0].cs = layers->kind == CONV ? t[0].c : filled(t[0].c);
  for (int64_t i = 0, last = 0; i < k->layers; i++) {
    const layer *l = layers + i;
    s[i] = (stage){.l = l, .in = t + last, .further = i > p.first};
    if (l->kind == CONV) t[last].v_h = l->pad_h, t[last].v_w = l->pad_w;
    if (l->kind != RELU) {
      last = i + 1;
      t[last] = (values){.h = l->out_h, .w = l->out_w, .c = l->out_c, .cs = filled(l->out_c)};
      if (l->kind == CONV && s[i].further) {
        t[last].g_h = l->kernel_h - 1 - l->pad_h;
        t[last].g_w = l->kernel_w - 1 - l->pad_w;
      }
    }
    s[i].out = t + last;
  }
  for (int64_t i = 0; i <= k->layers; i++)
    if (t[i].c) open_values(t + i, a, k->batch);
  for (int64_t i = 0; i < k->layers; i++) open_stage(s + i, a, k->batch);
  return p;
}

/* Samples of a batch, where the first layer finds them. */
static void fetch(const call *k, const program *p, const int64_t *rows) {
  const values *t = p->places;
  int64_t size = t->c * t->h * t->w, pixels = t->h * t->w;
  for (int64_t n = 0; n < k->batch; n++) {
    const T *sample = k->x + rows[n] * size;
    p->samples[n] = sample;
    if (p->stages->l->kind == DENSE) continue;
    for (int64_t c = 0; c < t->c; c++)
      for (int64_t q = 0; q < pixels; q++) value(t, n, q / t->w, q % t->w)[c] = sample[c * pixels + q];
  }
}

/* The rows of a dense layer's input. */
static const T *const *inputs(const call *k, const program *p, int64_t i) {
  const values *in = p->stages[i].in;
  if (i == 0) return p->samples;
  for (int64_t n = 0; n < k->batch; n++) p->own[n] = value(in, n, 0, 0);
  return p->own;
}

/* Samples of the next batch come into the cache while this one trains. */
static void expect(const call *k, const program *p, const int64_t *rows) {
  int64_t bytes = p->places->c * p->places->h * p->places->w * (int64_t)sizeof(T);
  for (int64_t n = 0; n < k->batch; n++)
    for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch((const char *)k->x + rows[n] * bytes + i, 0, 2);
}

static void step(const call *k, const program *p, int64_t device, const int64_t *rows, const int64_t *next) {
  T scale = (T)k->scale[device * k->scale_step];
  fetch(k, p, rows);
  for (int64_t i = 0; i < k->layers; i++) {
    const stage *s = p->stages + i;
    if (s->l->kind == DENSE) dense(s, inputs(k, p, i), k->batch);
    else if (s->l->kind == CONV) conv(s, k->batch);
    else if (s->l->kind == NORM) norm(s, k->batch);
    else if (s->l->kind == RELU) relu(s->out, k->batch);
    else pool(s, k->batch);
  }
  if (next) expect(k, p, next);
  differentiate(k, p->stages[k->layers - 1].out, rows);
  for (int64_t i = k->layers - 1; i >= p->first; i--) {
    const stage *s = p->stages + i;
    if (s->l->kind == DENSE) dense_back(s, device, inputs(k, p, i), k->batch, scale);
    else if (s->l->kind == CONV) conv_back(s, device, k->batch, scale);
    else if (s->l->kind == NORM) norm_back(s, device, k->batch, scale);
    else if (s->l->kind == RELU) relu_back(s->out, k->batch);
    else pool_back(s, k->batch);
  }
}

/* Bytes of memory that `tierfed_train` works in; 0: the chain is too long. */
int64_t tierfed_room(const call *k, const layer *layers) {
  arena a = {0};
  if (k->layers > MOST) return 0;
  open_program(k, layers, &a);
  return (int64_t)a.used + LINE;
}

/* Trains the devices begin … end of a call. room: `tierfed_room` bytes of the thread's own */
void tierfed_train(const call *k, const layer *layers, char *room, int64_t begin, int64_t end) {
  arena a = {.base = room + (LINE - (uintptr_t)room % LINE) % LINE};
  program p = open_program(k, layers, &a);
  for (int64_t d = begin; d < end; d++) {
    for (int64_t i = 0; i < k->layers; i++) load(p.stages + i, d);
    for (int64_t t = 0; t < k->steps; t++) {
      const int64_t *rows = k->rows + (d * k->steps + t) * k->batch;
      if (k->live[d * k->steps + t]) step(k, &p, d, rows, t + 1 < k->steps ? rows + k->batch : NULL);
    }
    for (int64_t i = 0; i < k->layers; i++) save(p.stages + i, d);
  }
}
