// Numbers of the compiled passes: float32 and bfloat16 in memory, float32 in between; and e to a power.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

using Int = int64_t;

struct BFloat16 {
  uint16_t bits;
};

static inline float read(float x) { return x; }

static inline float read(BFloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}

static inline void write(float x, float& y) { y = x; }

static inline void write(float x, BFloat16& y) {  // to the nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &x, 4);
  y.bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// e^x for x <= 0, by Cephes' polynomial on [-log 2 / 2, log 2 / 2]; NaN stays NaN.
static inline float exponential(float x) {
  float shifted = x * 1.44269504f + 12582912.0f;  // the nearest whole number in the low bits
  float whole = shifted - 12582912.0f;
  float rest = x - whole * 0.693145752f - whole * 1.42860677e-6f;
  float p = 1.9875691500e-4f;
  p = p * rest + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * (rest * rest) + rest + 1.0f;
  uint32_t bits;
  memcpy(&bits, &shifted, 4);
  bits = (bits << 23) + (127u << 23);
  float power;
  memcpy(&power, &bits, 4);
  return x < -87.0f ? 0.0f : p * power;
}
