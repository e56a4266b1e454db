// Vectors of doubles, half as many lanes as there are of floats, and functions of them to about one
// unit in the last place; NaN stays NaN. Include inside no namespace.
#pragma once

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "cpu/common/simd.h"

namespace r1::R1_ISA {
constexpr int kDoubles = kWidth / 2;
typedef double D __attribute__((vector_size(8 * kDoubles)));
typedef int64_t L __attribute__((vector_size(8 * kDoubles)));    // their bits, or their indices
typedef float Singles __attribute__((vector_size(4 * kDoubles)));
typedef uint32_t SingleBits __attribute__((vector_size(4 * kDoubles)));
typedef uint16_t Halves __attribute__((vector_size(2 * kDoubles)));

static inline D splat_double(double x) { return D{} + x; }
static inline D load_double(const double* p) { return load_as<D>(p); }
static inline void store_double(double* p, D v) { store_as(p, v); }
#ifdef __AVX512F__
static inline D to_double(Singles v) { return (D)_mm512_maskz_cvtps_pd(0xff, (__m256)v); }
#else
static inline D to_double(Singles v) { return __builtin_convertvector(v, D); }
#endif
static inline D to_double(Halves h) {
  return to_double((Singles)(__builtin_convertvector(h, SingleBits) << 16));
}
static inline L lane_numbers() {
  L n{};
  for (int i = 0; i < kDoubles; ++i) n[i] = i;
  return n;
}

// Lane i gets lane i + by, cyclically.
template <int by>
static inline D rotated(D v) {
  D r{};
  for (int i = 0; i < kDoubles; ++i) r[i] = v[(i + by) % kDoubles];
  return r;
}

// Bit i says that lane i of both is equal; NaN equals nothing.
static inline uint64_t equal_lanes(D a, D b) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_EQ_OQ);
#elif defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_pd((__m256d)(a == b)));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kDoubles; ++i) bits |= uint64_t(a[i] == b[i]) << i;
  return bits;
#endif
}

// p[i] = x, through the whole vector that holds it: the next load of that does not wait.
static inline void put(double* p, int64_t i, double x) {
  double* whole = p + i / kDoubles * kDoubles;
  store_double(whole, lane_numbers() == L{} + i % kDoubles ? splat_double(x) : load_double(whole));
}

// The maximum of a NaN and a number is the second, the minimum the first; so of equal ones.
#ifdef __AVX512F__
static inline D larger(D a, D b) {
  return (D)_mm512_maskz_max_pd(0xff, (__m512d)a, (__m512d)b);
}
static inline D smaller(D a, D b) {
  return (D)_mm512_maskz_min_pd(0xff, (__m512d)b, (__m512d)a);
}
#else
static inline D larger(D a, D b) { return a > b ? a : b; }
static inline D smaller(D a, D b) { return a > b ? b : a; }
#endif

static inline double largest_lane(D v) {
  if constexpr (kDoubles >= 8) v = larger(v, rotated<4>(v));
  if constexpr (kDoubles >= 4) v = larger(v, rotated<2>(v));
  return larger(v, rotated<1>(v))[0];
}
static inline double sum_of_lanes(D v) {
  if constexpr (kDoubles >= 8) v += rotated<4>(v);
  if constexpr (kDoubles >= 4) v += rotated<2>(v);
  return v[0] + v[1];
}

// Coefficients from that of the highest power to the constant.
template <int count>
static inline D polynomial(const double (&coefficients)[count], D x) {
  D p = splat_double(coefficients[0]);
  for (int i = 1; i < count; ++i) p = p * x + splat_double(coefficients[i]);
  return p;
}

static inline D exp(D x) {
  const D magic = splat_double(6755399441055744.0);  // 1.5·2^52: adding it rounds to an integer
  const D clamped = smaller(larger(splat_double(-746.0), x), splat_double(710.0));
  const D shifted = clamped * splat_double(1.4426950408889634074) + magic;
  const D n = shifted - magic;
  D r = clamped - n * splat_double(6.93147180369123816490e-01);
  r = r - n * splat_double(1.90821492927058770002e-10);
  constexpr double taylor[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800,
                               1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120,
                               1.0 / 24, 1.0 / 6, 0.5};  // enough for |r| ≤ ln 2 / 2
  D p = polynomial(taylor, r);
  p = p * r * r + r + splat_double(1.0);
#ifdef __AVX512F__
  return (D)_mm512_maskz_scalef_pd(0xff, (__m512d)p, (__m512d)n);
#else
  // 2^n in two factors: n = 1024 overflows, and n < -1022 becomes subnormal, only at the end.
  const L exponent = (L)shifted - (L)magic;
  const L half = exponent >> 1;
  return p * (D)((half + 1023) << 52) * (D)((exponent - half + 1023) << 52);
#endif
}

// ln(1 + x) for x ≥ 0. The logarithm of the rounded sum u, and what u lacks over u. (The reduction
// and the coefficients are those of FreeBSD's msun, e_log.c.)
static inline D log1p(D x) {
  const D u = x + splat_double(1.0), lacking = (x - (u - splat_double(1.0))) / u;
  L exponent = ((L)u >> 52) - 1022;
  D m = (D)(((L)u & 0x000fffffffffffff) | 0x3fe0000000000000);  // u = m·2^exponent, m in [0.5, 1)
  const L small = m < splat_double(0.70710678118654752440);
  exponent += small;
  m = small ? m + m : m;
  const D f = m - splat_double(1.0), s = f / (f + splat_double(2.0)), square = s * s;
  constexpr double series[] = {1.479819860511658591e-01, 1.531383769920937332e-01,
                               1.818357216161805012e-01, 2.222219843214978396e-01,
                               2.857142874366239149e-01, 3.999999999940941908e-01,
                               6.666666666666735130e-01};
  const D r = polynomial(series, square);
  const D half = splat_double(0.5) * f * f, e = __builtin_convertvector(exponent, D);
  const D low = s * (half + r * square) + (e * splat_double(1.90821492927058770002e-10) + lacking);
  const D found = e * splat_double(6.93147180369123816490e-01) - ((half - low) - f);
  return x == x ? found : x;
}

static inline D sqrt(D x) {
#if defined(__AVX512F__)
  return (D)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
#elif defined(__AVX2__)
  return (D)_mm256_sqrt_pd((__m256d)x);
#else
  for (int i = 0; i < kDoubles; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}
}  // namespace r1::R1_ISA
