// The passes over the logits of a tile, fused: relative logits, softmax, 2x2 pooling, and their gradients.
//
// Letters as in tiles.py: a tile is g heads of r rows of queries, from row y0 on, of an H x W map; N = H*W keys,
// n = r*W queries. by_offset [g, n, L] has each query's logits of the 2H-1 row offsets, then of the 2W-1 column
// offsets. `pool` makes windows of 2x2 queries, else a window is one query; n' windows. A window on an odd side
// has fewer queries. One query's numbers stay in the first cache from its logits to its weights. Every query and
// every window is computed by itself, so threads change no bit.

#include "floats.h"

struct Tile {
  Int g, r, y0, H, W, pool, threads;

  Int keys() const { return H * W; }
  Int step() const { return pool ? 2 : 1; }
  Int windows() const { return g * ((r + step() - 1) / step()) * ((W + step() - 1) / step()); }
};

struct Query {
  Int index, rows, columns;  // its place among g*n, and where its key rows and key columns begin in by_offset
};

// The queries of a window, 1 to 4: how many.
static Int queries_of(const Tile& t, Int window, Query* queries) {
  Int step = t.step(), down = (t.r + step - 1) / step, across = (t.W + step - 1) / step;
  Int head = window / (down * across), top = window / across % down * step, left = window % across * step;
  Int L = 2 * t.H + 2 * t.W - 2, found = 0;
  for (Int y = top; y < top + step && y < t.r; y++)
    for (Int x = left; x < left + step && x < t.W; x++) {
      Int index = (head * t.r + y) * t.W + x, start = index * L;
      queries[found++] = {index, start + t.H - 1 - (t.y0 + y), start + 2 * t.H - 1 + t.W - 1 - x};
    }
  return found;
}

// The softmax of one query's logits, without its last division: e, and 1 over its sum. `columns` is room for 2 (W + 8).
// The largest logit of each key column is found on the way: one number for all would wait for itself.
template <typename T>
static float softmax(const Tile& t, const T* S, const T* of_rows, const T* of_columns, float* e, float* columns) {
  Int N = t.keys(), W = t.W, wide = (W + 7) / 8 * 8;
  float* largest_of = columns + W + 8;
  for (Int x = 0; x < W; x++) {
    columns[x] = read(of_columns[x]);
    largest_of[x] = -__builtin_inff();
  }
  for (Int y = 0; y < t.H; y++) {
    float row = read(of_rows[y]);
    // Whole vectors: what they write too far to the right is written again by the next row.
    Int end = y < t.H - 1 ? wide : W;
    if (y + 1 < t.H && y * W + wide > N) end = W;
#pragma omp simd
    for (Int x = 0; x < end; x++) {
      float logit = read(S[y * W + x]) + (row + columns[x]);
      e[y * W + x] = logit;
      largest_of[x] = logit > largest_of[x] ? logit : largest_of[x];
    }
  }
  float largest = largest_of[0];
#pragma omp simd reduction(max : largest)
  for (Int x = 0; x < W; x++) largest = largest_of[x] > largest ? largest_of[x] : largest;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (Int i = 0; i < N; i++) {
    e[i] = exponential(e[i] - largest);
    sum += e[i];
  }
  return 1 / sum;
}

static float* room(const Tile& t, Int rows) {
  return static_cast<float*>(calloc(rows * (t.keys() + 8) + 2 * (t.W + 8), sizeof(float)));
}

// Logits S [g, n, N] to weights [g, n, N] (which may be S, or null) and their windows' sums [g, n', N] (or null).
template <typename T>
static int weights(const Tile& t, const T* S, const T* by_offset, T* P, T* sums) {
  Int N = t.keys(), windows = t.windows();
  int failed = 0;
#pragma omp parallel num_threads(t.threads) if (t.threads > 1) reduction(| : failed)
  {
    float *e = room(t, 2), *total = e + N + 8, *columns = total + N + 8;
    failed |= e == nullptr;
#pragma omp for
    for (Int w = 0; w < windows; w++) {
      if (e == nullptr) continue;
      Query queries[4];
      Int count = queries_of(t, w, queries);
      for (Int j = 0; j < count; j++) {
        Query q = queries[j];
        float share = softmax(t, S + q.index * N, by_offset + q.rows, by_offset + q.columns, e, columns);
        if (P != nullptr) {
          T* p = P + q.index * N;
#pragma omp simd
          for (Int i = 0; i < N; i++) write(e[i] * share, p[i]);
        }
        if (sums == nullptr) continue;
        if (j == 0) {
#pragma omp simd
          for (Int i = 0; i < N; i++) total[i] = e[i] * share;
        } else {
#pragma omp simd
          for (Int i = 0; i < N; i++) total[i] += e[i] * share;
        }
      }
      if (sums != nullptr) {
        T* s = sums + w * N;
#pragma omp simd
        for (Int i = 0; i < N; i++) write(total[i], s[i]);
      }
    }
    free(e);
  }
  return failed;
}

// From the gradient dP [g, n', N] of the windows' sums: of the logits, dS [g, n, N] (may be S, or dP without
// `pool`), and of by_offset [g, n, L]. S has logits, or the weights themselves where by_offset is null. The
// windows' sums again (or null).
template <typename T>
static int gradients(const Tile& t, const T* S, const T* by_offset, const T* dP, T* dS, T* sums, T* of_offset) {
  Int N = t.keys(), windows = t.windows(), L = 2 * t.H + 2 * t.W - 2;
  int failed = 0;
#pragma omp parallel num_threads(t.threads) if (t.threads > 1) reduction(| : failed)
  {
    float *p = room(t, 2), *total = p + N + 8, *columns = total + N + 8;
    failed |= p == nullptr;
#pragma omp for
    for (Int w = 0; w < windows; w++) {
      if (p == nullptr) continue;
      const T* above = dP + w * N;
      Query queries[4];
      Int count = queries_of(t, w, queries);
      for (Int j = 0; j < count; j++) {
        Query q = queries[j];
        const T* s = S + q.index * N;
        float share = 1, dot = 0;
        if (by_offset != nullptr) {
          share = softmax(t, s, by_offset + q.rows, by_offset + q.columns, p, columns);
        } else {
#pragma omp simd
          for (Int i = 0; i < N; i++) p[i] = read(s[i]);
        }
        if (j == 0) memset(total, 0, N * sizeof(float));
#pragma omp simd reduction(+ : dot)
        for (Int i = 0; i < N; i++) {
          p[i] *= share;
          total[i] += p[i];
          dot += p[i] * read(above[i]);
        }
        T* d = dS + q.index * N;
#pragma omp simd
        for (Int i = 0; i < N; i++) {
          p[i] *= read(above[i]) - dot;
          write(p[i], d[i]);
        }
        memset(of_offset + q.index * L, 0, L * sizeof(T));
        memset(columns, 0, t.W * sizeof(float));
        for (Int y = 0; y < t.H; y++) {
          float row = 0;
          const float* of_row = p + y * t.W;
#pragma omp simd reduction(+ : row)
          for (Int x = 0; x < t.W; x++) {
            row += of_row[x];
            columns[x] += of_row[x];
          }
          write(row, of_offset[q.rows + y]);
        }
        for (Int x = 0; x < t.W; x++) write(columns[x], of_offset[q.columns + x]);
      }
      if (sums != nullptr) {
        T* to = sums + w * N;
#pragma omp simd
        for (Int i = 0; i < N; i++) write(total[i], to[i]);
      }
    }
    free(p);
  }
  return failed;
}

#define EXPORTED(T)                                                                                          \
  int weights_##T(Tile t, const T* S, const T* by_offset, T* P, T* sums) {                                   \
    return weights(t, S, by_offset, P, sums);                                                                \
  }                                                                                                          \
  int gradients_##T(Tile t, const T* S, const T* by_offset, const T* dP, T* dS, T* sums, T* of_offset) {     \
    return gradients(t, S, by_offset, dP, dS, sums, of_offset);                                              \
  }

extern "C" {
EXPORTED(float)
EXPORTED(BFloat16)
}
