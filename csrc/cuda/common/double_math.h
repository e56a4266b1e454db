// Functions of float64 without branches or calls, so that a thread works on several at once. Each is
// within 2 units in the last place; in the library they also serve arguments that do not occur here.
#pragma once

#include <cstdint>

#include "cuda/common/ptx.h"

namespace r1 {
// eˣ for x up to 709, 0 below −708; NaN for NaN.
__device__ inline double exponential(double x) {
  constexpr double kLog2E = 0x1.71547652b82fep+0, kRound = 0x1.8p+52;  // its low bits are units
  constexpr double kLn2 = 0x1.62e42fefa39efp-1, kLn2Rest = 0x1.abc9e3b39803fp-56;
  const double shifted = fma(x, kLog2E, kRound), k = shifted - kRound;
  const double r = fma(-k, kLn2Rest, fma(-k, kLn2, x));
  // (eʳ − 1 − r)/r² on ±ln 2/2 by Chebyshev interpolation.
  double q = 0x1.af38a9b0ec855p-26;
  q = fma(q, r, 0x1.289185613a3d6p-22);
  q = fma(q, r, 0x1.71de0dae63bb3p-19);
  q = fma(q, r, 0x1.a019b90d2ae7ap-16);
  q = fma(q, r, 0x1.a01a01a7c41d5p-13);
  q = fma(q, r, 0x1.6c16c1788bd90p-10);
  q = fma(q, r, 0x1.11111111109b3p-7);
  q = fma(q, r, 0x1.5555555553d63p-5);
  q = fma(q, r, 0x1.5555555555556p-3);
  q = fma(q, r, 0x1.0000000000001p-1);
  const uint64_t power = static_cast<uint64_t>(__double_as_longlong(fma(fma(q, r, 1.0), r, 1.0)));
  const uint64_t exponent = static_cast<uint64_t>(__double_as_longlong(shifted)) << 52;
  return x < -708.0 ? 0.0 : __longlong_as_double(power + exponent);
}

// 1/x for x ≥ 10⁻³⁰⁰.
__device__ inline double reciprocal(double x) {
  double y = approximate_reciprocal(x);
  const double error = fma(-x, y, 1.0);
  y = fma(y, fma(error, error, error), y);
  y = fma(y, fma(-x, y, 1.0), y);
  return x > 0x1p+1022 ? 0.0 : y;
}

// a/b, rounded to nearest, for b ≥ 10⁻³⁰⁰.
__device__ inline double quotient(double a, double b) {
  const double y = reciprocal(b), q = a * y;
  return y == 0.0 ? q : fma(fma(-b, q, a), y, q);
}

// √x for x = 0 and x ≥ 10⁻³⁰⁰.
__device__ inline double square_root(double x) {
  const double y = approximate_rsqrt(x);
  double root = x * y, half = 0.5 * y;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const double error = fma(-root, half, 0.5);
    root = fma(root, error, root);
    half = fma(half, error, half);
  }
  root = fma(fma(-root, root, x), half, root);
  return x == 0.0 || x > 0x1p+1022 ? x : root;
}

// ln(1 + x) for 0 ≤ x ≤ 1.
__device__ inline double log_1_plus(double x) {
  const double w = quotient(x, 2.0 + x), u = w * w;  // ln(1 + x) = 2·artanh w
  // (artanh(w)/w − 1)/w² on 0 ≤ w ≤ 1/3 by Chebyshev interpolation.
  double q = 0x1.4b0ed4be611b2p-4;
  q = fma(q, u, 0x1.687604d0c86a1p-5);
  q = fma(q, u, 0x1.eb913ba3ef69ep-5);
  q = fma(q, u, 0x1.10ac6a3d3e5f6p-4);
  q = fma(q, u, 0x1.3b18b34a260a3p-4);
  q = fma(q, u, 0x1.745cf0aa6a011p-4);
  q = fma(q, u, 0x1.c71c727164156p-4);
  q = fma(q, u, 0x1.24924923d422cp-3);
  q = fma(q, u, 0x1.999999999a3dfp-3);
  q = fma(q, u, 0x1.5555555555555p-2);
  return 2.0 * fma(w * u, q, w);
}

__device__ inline double sigmoid(float z) {
  return reciprocal(1.0 + exponential(-double{at_least(z, -708.0f)}));
}
__device__ inline double sqrt_softplus(float z) {
  return square_root(double{at_least(z, 0.0f)} + log_1_plus(exponential(-double{fabsf(z)})));
}
}  // namespace r1
