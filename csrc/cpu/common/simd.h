// Vectors of the instruction set this file is compiled for, through the compiler's own vector
// types: the same source becomes AVX-512, AVX2 or SSE2. Include inside no namespace.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "cpu/common/isa.h"

namespace r1::R1_ISA {
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float F __attribute__((vector_size(4 * kWidth)));      // fp32 lanes
typedef int32_t I __attribute__((vector_size(4 * kWidth)));    // their bits
typedef uint32_t U __attribute__((vector_size(4 * kWidth)));
typedef uint16_t H __attribute__((vector_size(2 * kWidth)));   // bf16 lanes

static inline F splat(float x) { return F{} + x; }
static inline U splat_bits(uint32_t x) { return U{} + x; }

template <class V>
static inline V load_as(const void* p) {
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
static inline void store_as(void* p, V v) {
  memcpy(p, &v, sizeof(V));
}
static inline F load(const float* p) { return load_as<F>(p); }
static inline void store(float* p, F v) { store_as(p, v); }

// The compiler does not find the one instruction in a > b ? a : b, which is what it does: b where
// one of them is NaN.
#if defined(__AVX512F__)
static inline F max(F a, F b) { return (F)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }
static inline F min(F a, F b) { return (F)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
#elif defined(__AVX2__)
static inline F max(F a, F b) { return (F)_mm256_max_ps((__m256)a, (__m256)b); }
static inline F min(F a, F b) { return (F)_mm256_min_ps((__m256)a, (__m256)b); }
#else
static inline F max(F a, F b) { return a > b ? a : b; }
static inline F min(F a, F b) { return a < b ? a : b; }
#endif

// The compiler widens 16 bits to 32 in halves and puts these together, where AVX2 needs one step.
#ifdef R1_ISA_IS_AVX2
static inline U widen(H h) { return (U)_mm256_cvtepu16_epi32((__m128i)h); }
#else
static inline U widen(H h) { return __builtin_convertvector(h, U); }
#endif
// The low half of each lane, whose high half is 0.
#ifdef R1_ISA_IS_AVX2
static inline H narrow(U u) {
  const __m256i bits = (__m256i)u;
  return (H)_mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
}
#else
static inline H narrow(U u) { return __builtin_convertvector(u, H); }
#endif
static inline F from_bf16(H h) { return (F)(widen(h) << 16); }
static inline F load_bf16(const uint16_t* p) { return from_bf16(load_as<H>(p)); }

// Round to nearest even; NaN stays NaN. In the low half of each lane.
#ifdef __AVX512BF16__
static inline H to_bf16(F v) { return (H)_mm512_cvtneps_pbh((__m512)v); }
static inline U bf16_bits(F v) { return __builtin_convertvector(to_bf16(v), U); }
#else
static inline U bf16_bits(F v) {
  U u = (U)v;
  U rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return (v == v) ? rounded : (u >> 16 | 0x40);
}
static inline H to_bf16(F v) { return narrow(bf16_bits(v)); }
#endif
static inline void store_bf16(uint16_t* p, F v) { store_as(p, to_bf16(v)); }

// Keeps a product apart from the sum that takes it: rounded by itself, never fused with it.
static inline F apart(F v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

static inline float sum(F v) {
  float total = 0;
  for (int i = 0; i < kWidth; ++i) total += v[i];
  return total;
}

static inline float bf16_to_float(uint16_t h) {
  uint32_t u = uint32_t(h) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline uint16_t float_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if (f != f) return uint16_t(u >> 16 | 0x40);
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// 2^n and e^r of x = n·ln 2 + r, |r| ≤ ln 2 / 2.
struct Exponential {
  I n;
  F of_rest;
};
static inline Exponential reduced_exp(F x) {
  const F magic = splat(12582912.0f);  // 1.5·2^23: adding it rounds to an integer
  F shifted = x * splat(1.44269504088896341f) + magic;
  F n = shifted - magic;
  F r = x - n * splat(0.693359375f);
  r = r - n * splat(-2.12194440e-4f);
  F p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  return {(I)shifted - (I)magic, p * r * r + r + splat(1.0f)};
}

// e^x to about one unit in the last place; 0 below -87.3 (no subnormals), +inf above 88.7.
static inline F exp(F x) {
  F clamped = x < splat(-87.3f) ? splat(-87.3f) : x;
  clamped = clamped > splat(88.8f) ? splat(88.8f) : clamped;
  const Exponential e = reduced_exp(clamped);
  // 2^n in two factors, so that n = 128 overflows to inf only where it should.
  const I half = e.n >> 1;
  F p = e.of_rest * (F)((half + 127) << 23) * (F)((e.n - half + 127) << 23);
  p = x < splat(-87.3f) ? splat(0.0f) : p;
  return x == x ? p : x;
}

// ln x to about one unit in the last place, for normal x > 0; -inf at 0, NaN below.
static inline F log(F x) {
  I bits = (I)x;
  I exponent = ((bits >> 23) & 0xff) - 126;
  F m = (F)((bits & 0x007fffff) | 0x3f000000);  // x = m·2^exponent, m in [0.5, 1)
  I small = m < splat(0.707106781186547524f);
  exponent = small ? exponent - 1 : exponent;
  m = small ? m + m : m;
  m = m - splat(1.0f);
  const F e = __builtin_convertvector(exponent, F), square = m * m;
  F p = splat(7.0376836292e-2f);
  p = p * m - splat(1.1514610310e-1f);
  p = p * m + splat(1.1676998740e-1f);
  p = p * m - splat(1.2420140846e-1f);
  p = p * m + splat(1.4249322787e-1f);
  p = p * m - splat(1.6668057665e-1f);
  p = p * m + splat(2.0000714765e-1f);
  p = p * m - splat(2.4999993993e-1f);
  p = p * m + splat(3.3333331174e-1f);
  p = p * m * square - e * splat(2.12194440e-4f) - splat(0.5f) * square;
  p = m + p + e * splat(0.693359375f);
  p = x > splat(0.0f) ? p : splat(__builtin_nanf(""));
  return x == splat(0.0f) ? splat(-__builtin_inff()) : p;
}

// The same bits for x ≤ 0 or NaN, with fewer instructions.
static inline F exp_nonpositive(F x) {
  const Exponential e = reduced_exp(x < splat(-87.3f) ? splat(-87.3f) : x);
  const F p = e.of_rest * (F)((e.n + 127) << 23);
  return x < splat(-87.3f) ? splat(0.0f) : p;
}

// The error function to about one unit in the last place: a polynomial near 0, 1 - e^polynomial
// elsewhere (N. Juffa).
static inline F erf(F x) {
  const F t = (F)((I)x & 0x7fffffff), square = x * x;
  F r = t * splat(-1.72853470e-5f) + splat(3.83197126e-4f);
  r = r * square + (t * splat(-3.88396438e-3f) + splat(2.42546219e-2f));
  r = r * t + splat(-1.06777877e-1f);
  r = r * t + splat(-6.34846687e-1f);
  r = r * t + splat(-1.28717512e-1f);
  r = splat(1.0f) - exp_nonpositive(r * t - t);
  const F large = (F)((I)r | ((I)x & INT32_MIN));
  F p = splat(-5.96761703e-4f);
  p = p * square + splat(4.99119423e-3f);
  p = p * square + splat(-2.67681349e-2f);
  p = p * square + splat(1.12819925e-1f);
  p = p * square + splat(-3.76125336e-1f);
  p = p * square + splat(1.28379166e-1f);
  return t > splat(0.927734375f) ? large : p * x + x;
}

static inline F tanh(F x) {
  F magnitude = (F)((I)x & 0x7fffffff);
  F square = x * x;
  F p = splat(-5.70498872745e-3f);
  p = p * square + splat(2.06390887954e-2f);
  p = p * square + splat(-5.37397155531e-2f);
  p = p * square + splat(1.33314422036e-1f);
  p = p * square + splat(-3.33332819422e-1f);
  F small = p * square * x + x;
  F large = splat(1.0f) - splat(2.0f) / (exp(magnitude + magnitude) + splat(1.0f));
  large = x < splat(0.0f) ? -large : large;
  return magnitude < splat(0.625f) ? small : large;
}
}  // namespace r1::R1_ISA
