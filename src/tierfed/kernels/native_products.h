/* Numbers, vectors and the two products of native.c, for any processor that a C compiler with vectors knows.
 *
 * `nn` adds a[m][k] b[k][n] over k, `tn` adds a[k][m] b[k][n]. A tile of the result stays in registers; rows of a and b
 * are found by pointers. Columns are whole vectors. `across` writes rows as columns.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef REAL
#define REAL float
#define WHOLE int32_t
#endif
typedef REAL T;
typedef WHOLE I; /* an integer of the same size */

/* ROWS x 2 accumulators, 2 vectors of b and one number of a have to fit into the registers. */
#if defined(__AVX512F__)
enum { BYTES = 64, ROWS = 10 };
#elif defined(__AVX2__)
enum { BYTES = 32, ROWS = 5 };
#elif defined(__aarch64__)
enum { BYTES = 16, ROWS = 10 };
#else
enum { BYTES = 16, ROWS = 5 };
#endif
enum { LANES = BYTES / sizeof(T), PANEL = 2 * LANES, LINE = 64, DEPTH = 256, MOST = 64 };
typedef T V __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
typedef I M __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias)); /* of comparisons: all bits or none */

#define INLINE static inline __attribute__((always_inline))
#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)
#define AT(p) (*(V *)(p))
#define GIVEN(p) (*(const V *)(p))

INLINE void nn_tile(const int R, const int N, const T *const *a, int64_t skip, int64_t parts, int64_t K, const T *b,
                    int64_t ldb, const T *first, T *c, int64_t ldc) {
  V sum[ROWS][2];
  const T *p[ROWS];
  EACH(m, R) {
    p[m] = a[m];
    EACH(n, N) sum[m][n] = first ? GIVEN(first + n * LANES) : AT(c + m * ldc + n * LANES);
  }
  for (int64_t s = 0; s < parts; s++) {
    for (int64_t k = 0; k < K; k++, b += ldb) {
      V w[2];
      EACH(n, N) w[n] = GIVEN(b + n * LANES);
      EACH(m, R) {
        const T x = p[m][k];
        EACH(n, N) sum[m][n] += x * w[n];
      }
    }
    EACH(m, R) p[m] += skip;
  }
  EACH(m, R) EACH(n, N) AT(c + m * ldc + n * LANES) = sum[m][n];
}

INLINE void tn_tile(const int R, const int N, const T *const *a, int64_t at, int64_t K, const T *const *b, int64_t col,
                    T beta, T alpha, const T *push, T *c, int64_t ldc) {
  V sum[ROWS][2];
  EACH(m, R) EACH(n, N) {
    sum[m][n] = (V){0};
    __builtin_prefetch(c + m * ldc + n * LANES, 1); /* comes from the second cache while the sums are made */
    if (push) __builtin_prefetch(push + m * ldc + n * LANES);
  }
  for (int64_t k = 0; k < K; k++) {
    const T *p = a[k] + at, *q = b[k] + col;
    V w[2];
    EACH(n, N) w[n] = GIVEN(q + n * LANES);
    EACH(m, R) {
      const T x = p[m];
      EACH(n, N) sum[m][n] += x * w[n];
    }
  }
  EACH(m, R) EACH(n, N) {
    V new = beta * AT(c + m * ldc + n * LANES) + alpha * sum[m][n];
    if (push) new += GIVEN(push + m * ldc + n * LANES);
    AT(c + m * ldc + n * LANES) = new;
  }
}

#if defined(__AVX512F__) || defined(__aarch64__)
#define WIDE(TILE, N, ...)                                                                                        \
  case 6: TILE(6, N, __VA_ARGS__); break;                                                                         \
  case 7: TILE(7, N, __VA_ARGS__); break;                                                                         \
  case 8: TILE(8, N, __VA_ARGS__); break;                                                                         \
  case 9: TILE(9, N, __VA_ARGS__); break;                                                                         \
  case 10: TILE(10, N, __VA_ARGS__); break;
#else
#define WIDE(TILE, N, ...)
#endif
#define OF_SIZE(R, TILE, N, ...)                                                                                  \
  switch (R) {                                                                                                    \
    case 1: TILE(1, N, __VA_ARGS__); break;                                                                       \
    case 2: TILE(2, N, __VA_ARGS__); break;                                                                       \
    case 3: TILE(3, N, __VA_ARGS__); break;                                                                       \
    case 4: TILE(4, N, __VA_ARGS__); break;                                                                       \
    case 5: TILE(5, N, __VA_ARGS__); break;                                                                       \
      WIDE(TILE, N, __VA_ARGS__)                                                                                  \
  }

/* c[m][:] = (first or c[m][:]) + sum over parts s and k of a[m][s skip + k] b[s K + k][:], for up to ROWS rows m */
static __attribute__((noinline)) void nn(int64_t rows, int64_t columns, const T *const *a, int64_t skip, int64_t parts,
                                         int64_t K, const T *b, int64_t ldb, const T *first, T *c, int64_t ldc) {
  if (columns == PANEL) OF_SIZE(rows, nn_tile, 2, a, skip, parts, K, b, ldb, first, c, ldc)
  else OF_SIZE(rows, nn_tile, 1, a, skip, parts, K, b, ldb, first, c, ldc)
}

/* c[m][:] = beta c[m][:] + alpha sum over k of a[k][at + m] b[k][col:] + push[m][:] */
static __attribute__((noinline)) void tn(int64_t rows, int64_t columns, const T *const *a, int64_t at, int64_t K,
                                         const T *const *b, int64_t col, T beta, T alpha, const T *push, T *c,
                                         int64_t ldc) {
  if (columns == PANEL) OF_SIZE(rows, tn_tile, 2, a, at, K, b, col, beta, alpha, push, c, ldc)
  else OF_SIZE(rows, tn_tile, 1, a, at, K, b, col, beta, alpha, push, c, ldc)
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The next of the even shares, none above ROWS, into which `left` rows are cut. */
static int64_t tile(int64_t left) {
  int64_t shares = (left + ROWS - 1) / ROWS;
  return (left + shares - 1) / shares;
}

/* The same as `nn` for any number of rows and columns; b [parts K, columns]. */
static void product(int64_t M, const T *const *a, int64_t skip, int64_t parts, int64_t K, const T *b, int64_t columns,
                    const T *first, T *c, int64_t ldc) {
  int64_t depth = parts > 1 ? K : DEPTH; /* a panel of b stays in the first cache */
  const T *from[ROWS];
  for (int64_t k = 0; k < K; k += depth)
    for (int64_t n = 0; n < columns; n += PANEL)
      for (int64_t m = 0, r; m < M; m += r) {
        r = tile(M - m);
        for (int64_t i = 0; i < r; i++) from[i] = a[m + i] + k;
        nn(r, least(PANEL, columns - n), from, skip, parts, least(depth, K - k), b + k * columns + n, columns,
           k || !first ? NULL : first + n, c + m * ldc + n, ldc);
      }
}

/* The same as `tn` for any number of rows and columns of c. */
static void outer(int64_t M, const T *const *a, int64_t at, int64_t K, const T *const *b, int64_t columns, T beta,
                  T alpha, const T *push, T *c) {
  for (int64_t m = 0, r; m < M; m += r) {
    r = tile(M - m);
    for (int64_t n = 0; n < columns; n += PANEL)
      tn(r, least(PANEL, columns - n), a, at + m, K, b, n, beta, alpha, push ? push + m * columns + n : NULL,
         c + m * columns + n, columns);
  }
}

/* to[c][r] = by from[r][c] (+ to[c][r]) for LANES columns c and some rows r; zeros for the other rows. Only `columns`
 * rows of `to` are written, as whole vectors. */
static void across_block(int64_t rows, int64_t columns, T by, int more, const T *from, int64_t ld, T *to, int64_t ldt) {
  V r[LANES];
  for (int64_t i = 0; i < LANES; i++) r[i] = i < rows ? GIVEN(from + i * ld) : (V){0};
#if defined(__GNUC__) && !defined(__clang__)
  M low, high;
  EACH(i, LANES) low[i] = i / 2 + i % 2 * LANES, high[i] = low[i] + LANES / 2;
  for (int step = 1; step < LANES; step *= 2) { /* every step shuffles row i and row i + LANES / 2 into each other */
    V s[LANES];
    EACH(i, LANES / 2) {
      s[2 * i] = __builtin_shuffle(r[i], r[i + LANES / 2], low);
      s[2 * i + 1] = __builtin_shuffle(r[i], r[i + LANES / 2], high);
    }
    EACH(i, LANES) r[i] = s[i];
  }
#else
  V s[LANES];
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < LANES; j++) s[i][j] = r[j][i];
  for (int i = 0; i < LANES; i++) r[i] = s[i];
#endif
  for (int64_t i = 0; i < columns; i++) AT(to + i * ldt) = more ? by * r[i] + AT(to + i * ldt) : by * r[i];
}

/* to[c][r] = by from[r][c] (+ to[c][r]). Rows of `from` can be read, and rows of `to` written, as whole vectors; what
 * the latter are filled up with are zeros. */
static void across(int64_t rows, int64_t columns, T by, int more, const T *from, int64_t ld, T *to, int64_t ldt) {
  for (int64_t r = 0; r < rows; r += LANES)
    for (int64_t c = 0; c < columns; c += LANES)
      across_block(least(LANES, rows - r), least(LANES, columns - c), by, more, from + r * ld + c, ld, to + c * ldt + r, ldt);
}
