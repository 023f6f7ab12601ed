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
  Int offsets() const { return 2 * H + 2 * W - 2; }
};

struct Query {
  Int index, rows, columns;  // its place among g*n, and where its key rows and key columns begin in by_offset
};

static const Int WIDE = 8;  // floats that are taken at a time: a row of a narrow map

// What a thread needs of its own: two rows of logits, and two of key columns.
struct Room {
  float *e, *total, *columns, *largest;
};

// Call `each` of every window: its number, its 1 to 4 queries, how many, and its thread's room. 0, or 1 without memory.
template <typename Each>
static int for_windows(const Tile& t, Each each) {
  Int step = t.pool ? 2 : 1, down = (t.r + step - 1) / step, across = (t.W + step - 1) / step;
  Int keys = t.keys() + WIDE, wide = t.W + WIDE;
  int failed = 0;
#pragma omp parallel num_threads(t.threads) if (t.threads > 1) reduction(| : failed)
  {
    float* memory = static_cast<float*>(calloc(2 * keys + 2 * wide, sizeof(float)));
    Room room = {memory, memory + keys, memory + 2 * keys, memory + 2 * keys + wide};
    failed |= memory == nullptr;
#pragma omp for collapse(3)  // over all windows: a tile of a large map has few rows
    for (Int head = 0; head < t.g; head++)
      for (Int i = 0; i < down; i++)
        for (Int j = 0; j < across; j++) {
          if (memory == nullptr) continue;
          Query queries[4];
          Int count = 0;
          for (Int y = i * step; y < (i + 1) * step && y < t.r; y++)
            for (Int x = j * step; x < (j + 1) * step && x < t.W; x++) {
              Int index = (head * t.r + y) * t.W + x, start = index * t.offsets();
              queries[count++] = {index, start + t.H - 1 - (t.y0 + y), start + 2 * t.H - 1 + t.W - 1 - x};
            }
          each((head * down + i) * across + j, queries, count, room);
        }
    free(memory);
  }
  return failed;
}

// The softmax of one query's logits, without its last division: room.e, and 1 over its sum.
// The largest logit of each key column is found on the way: one number for all would wait for itself.
template <typename T>
static float softmax(const Tile& t, const T* S, const T* of_rows, const T* of_columns, const Room& room) {
  Int N = t.keys(), W = t.W, wide = (W + WIDE - 1) / WIDE * WIDE;
  float *e = room.e, *columns = room.columns, *largest_of = room.largest;
  for (Int x = 0; x < W; x++) columns[x] = read(of_columns[x]);
  for (Int x = 0; x < wide; x++) largest_of[x] = -__builtin_inff();
  for (Int y = 0; y < t.H; y++) {
    float row = read(of_rows[y]);
    auto add = [&](Int x) {
      float logit = read(S[y * W + x]) + (row + columns[x]);
      e[y * W + x] = logit;
      largest_of[x] = logit > largest_of[x] ? logit : largest_of[x];
    };
    // Whole vectors: what they write too far to the right is written again by the next row.
    Int end = y * W + wide <= N ? wide : W;
    if (end == WIDE) {  // a number that the compiler knows
#pragma omp simd
      for (Int x = 0; x < WIDE; x++) add(x);
    } else {
#pragma omp simd
      for (Int x = 0; x < end; x++) add(x);
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

// Logits S [g, n, N] to weights [g, n, N] (which may be S, or null) and their windows' sums [g, n', N] (or null).
template <typename T>
static int weights(const Tile& t, const T* S, const T* by_offset, T* P, T* sums) {
  Int N = t.keys();
  return for_windows(t, [=](Int window, const Query* queries, Int count, const Room& room) {
    float *e = room.e, *total = room.total;
    for (Int j = 0; j < count; j++) {
      Query q = queries[j];
      float share = softmax(t, S + q.index * N, by_offset + q.rows, by_offset + q.columns, room);
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
      T* s = sums + window * N;
#pragma omp simd
      for (Int i = 0; i < N; i++) write(total[i], s[i]);
    }
  });
}

// From the gradient dP [g, n', N] of the windows' sums: of the logits, dS [g, n, N] (may be S, or dP without
// `pool`), and of by_offset [g, n, L]. S has logits, or the weights themselves where by_offset is null. The
// windows' sums again (or null).
template <typename T>
static int gradients(const Tile& t, const T* S, const T* by_offset, const T* dP, T* dS, T* sums, T* of_offset) {
  Int N = t.keys(), L = t.offsets();
  return for_windows(t, [=](Int window, const Query* queries, Int count, const Room& room) {
    float *p = room.e, *total = room.total, *columns = room.columns;
    const T* above = dP + window * N;
    for (Int j = 0; j < count; j++) {
      Query q = queries[j];
      const T* s = S + q.index * N;
      float share = 1, dot = 0;
      if (by_offset != nullptr) {
        share = softmax(t, s, by_offset + q.rows, by_offset + q.columns, room);
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
      T* to = sums + window * N;
#pragma omp simd
      for (Int i = 0; i < N; i++) write(total[i], to[i]);
    }
  });
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
