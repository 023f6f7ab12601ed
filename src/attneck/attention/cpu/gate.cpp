// The passes over a map that BAM's gate makes, fused: x + x * sigmoid(combine(a, b)), its gradients, and column sums.
//
// A map lies as B matrices of O rows and I columns (gate.py): a [B, O] has the rows' logits, b [B, I] the columns',
// both in float32. Rows go in chunks of fixed length, each with column sums of its own, so threads change no bit.

#include "floats.h"

static inline float sigmoid(float x) {
  float e = exponential(x < 0 ? x : -x);
  return (x < 0 ? e : 1.0f) / (1.0f + e);
}

struct Sum {
  static float both(float a, float b) { return a + b; }
  static float of_a(float grad, float, float) { return grad; }
};

struct Product {
  static float both(float a, float b) { return a * b; }
  static float of_a(float grad, float, float b) { return grad * b; }
};

struct Maximum {  // a tie shares its gradient
  static float both(float a, float b) { return a > b || a != a ? a : b; }
  static float of_a(float grad, float a, float b) { return a > b ? grad : a == b ? grad / 2 : 0.0f; }
};

struct Map {
  Int B, O, I, chunk, threads;

  Int chunks() const { return (O + chunk - 1) / chunk; }
};

template <typename T, typename Combine>
static int weigh(const Map& m, const T* x, const float* a, const float* b, T* out) {
#pragma omp parallel for num_threads(m.threads) if (m.threads > 1)
  for (Int row = 0; row < m.B * m.O; row++) {
    const float* columns = b + row / m.O * m.I;
    float of_row = a[row];
#pragma omp simd
    for (Int i = 0; i < m.I; i++) {
      float value = read(x[row * m.I + i]);
      write(value + value * sigmoid(Combine::both(of_row, columns[i])), out[row * m.I + i]);
    }
  }
  return 0;
}

// From the gradient of weigh's result: of x, of a [B, O], and of b by chunks [B, chunks, I].
template <typename T, typename Combine>
static int gradients(const Map& m, const T* x, const float* a, const float* b, const T* above, T* dx, float* da,
                      float* db) {
#pragma omp parallel for num_threads(m.threads) if (m.threads > 1)
  for (Int c = 0; c < m.B * m.chunks(); c++) {
    Int image = c / m.chunks(), first = c % m.chunks() * m.chunk;
    Int last = first + m.chunk < m.O ? first + m.chunk : m.O;
    const float* columns = b + image * m.I;
    float* of_columns = db + c * m.I;
    memset(of_columns, 0, m.I * sizeof(float));
    for (Int row = image * m.O + first; row < image * m.O + last; row++) {
      const T *given = x + row * m.I, *grad = above + row * m.I;
      T* to = dx + row * m.I;
      float logit = a[row], of_row = 0;
#pragma omp simd reduction(+ : of_row)
      for (Int i = 0; i < m.I; i++) {
        float g = read(grad[i]), s = sigmoid(Combine::both(logit, columns[i]));
        write(g + g * s, to[i]);
        float of_logit = g * read(given[i]) * s * (1.0f - s);
        of_row += Combine::of_a(of_logit, logit, columns[i]);
        of_columns[i] += Combine::of_a(of_logit, columns[i], logit);
      }
      da[row] = of_row;
    }
  }
  return 0;
}

// The sums of x's columns by chunks: [B, chunks, I].
template <typename T>
static int column_sums(const Map& m, const T* x, float* sums) {
#pragma omp parallel for num_threads(m.threads) if (m.threads > 1)
  for (Int c = 0; c < m.B * m.chunks(); c++) {
    Int image = c / m.chunks(), first = c % m.chunks() * m.chunk;
    Int last = first + m.chunk < m.O ? first + m.chunk : m.O;
    float* to = sums + c * m.I;
    memset(to, 0, m.I * sizeof(float));
    for (Int row = image * m.O + first; row < image * m.O + last; row++) {
      const T* given = x + row * m.I;
#pragma omp simd
      for (Int i = 0; i < m.I; i++) to[i] += read(given[i]);
    }
  }
  return 0;
}

#define EXPORTED_FOR(T, COMBINE)                                                                                     \
  int weigh_##COMBINE##_##T(Map m, const T* x, const float* a, const float* b, T* out) {                             \
    return weigh<T, COMBINE>(m, x, a, b, out);                                                                       \
  }                                                                                                                  \
  int gradients_##COMBINE##_##T(Map m, const T* x, const float* a, const float* b, const T* above, T* dx,            \
                                 float* da, float* db) {                                                             \
    return gradients<T, COMBINE>(m, x, a, b, above, dx, da, db);                                                     \
  }

#define EXPORTED(T)                                                                                                  \
  EXPORTED_FOR(T, Sum)                                                                                               \
  EXPORTED_FOR(T, Product)                                                                                           \
  EXPORTED_FOR(T, Maximum)                                                                                           \
  int column_sums_##T(Map m, const T* x, float* sums) { return column_sums(m, x, sums); }

extern "C" {
EXPORTED(float)
EXPORTED(BFloat16)
}
