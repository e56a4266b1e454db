// Weights of logits in whole numbers, as r1kernels/head/sample_logprob.py defines them: the same
// arithmetic, to the bit.
#pragma once

#include <float.h>
#include <math.h>

#include "cpu/common/simd_double.h"
#include "cpu/head/sample_logprob.h"

namespace r1::R1_ISA {
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kOne = 0x1p40f;  // what a block's largest logit weighs

// 2^(40 + z) for z ≤ 0, 2^51 for NaN. Products and sums are rounded by themselves.
static inline F power(F z) {
  z = min(max(splat(-126.0f), z), splat(11.0f));
  const F magic = splat(12582912.0f);  // 1.5·2^23: adding it rounds to an integer
  const F shifted = z + magic, f = z - (shifted - magic);
  F p = splat(0x1.5bba14p-10f * kOne);
  p = apart(p * f) + splat(0x1.3cea88p-7f * kOne);
  p = apart(p * f) + splat(0x1.c6b752p-5f * kOne);
  p = apart(p * f) + splat(0x1.ebf9bcp-3f * kOne);
  p = apart(p * f) + splat(0x1.62e42ap-1f * kOne);
  p = apart(p * f) + splat(kOne);
  return (F)((U)p + ((U)shifted << 23));
}

// The lanes as integers, to nearest even; each is too large by kExcess, which is taken off the sum.
#if defined(__AVX512F__)
constexpr uint64_t kExcess = 0;  // there is an instruction for it
#else
constexpr uint64_t kExcess = 0x4330000000000000;  // 2^52 as a double: 1 is the worth of its last bit
#endif
typedef uint64_t Bits __attribute__((vector_size(8 * kDoubles)));
struct Integers {
  Bits low, high;
};
static inline Integers integers(F w) {
#if defined(__AVX512F__)
  const __m256 low = _mm512_maskz_extractf32x8_ps(0xff, (__m512)w, 0);
  const __m256 high = _mm512_maskz_extractf32x8_ps(0xff, (__m512)w, 1);
  return {(Bits)_mm512_maskz_cvtps_epi64(0xff, low), (Bits)_mm512_maskz_cvtps_epi64(0xff, high)};
#else
#if defined(__AVX2__)
  const D low = (D)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)w, 0));
  const D high = (D)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)w, 1));
#else
  const D low = {w[0], w[1]}, high = {w[2], w[3]};
#endif
  const D unit = splat_double(0x1p52);
  return {(Bits)(low + unit), (Bits)(high + unit)};
#endif
}

// What logits are times, to become exponents of 2. Finite, so that the largest one's stays 0.
static inline float rate_of(float temperature) {
  const float rate = kLog2E / (temperature == 0 ? 1.0f : temperature);
  return rate < FLT_MAX ? rate : FLT_MAX;
}

static inline Integers weights_of(F logits, F max_logit, F rate) {
  return integers(power(apart((logits - max_logit) * rate)));
}

static inline float number_of(float max_logit) { return max_logit > -INFINITY ? max_logit : 0.0f; }

// Which block a uniform number falls into, and how far into its weights.
struct Choice {
  int64_t block;    // -1 where there is no distribution
  int64_t within;   // of its weights; nothing where the largest logit is wanted
  float max_logit;  // the largest logit of all
  double total;     // weight of all, where that of `max_logit` is 1
};

// From the largest logit and the weight of every block.
static inline Choice choose_block(const float* block_max, const int64_t* weights, int64_t blocks,
                                  float temperature, double uniform) {
  constexpr int64_t kMostOfBlock = kSampleBlock << 40;  // more only where there is no number
  float max_logit = -INFINITY;
  for (int64_t n = 0; n < blocks; ++n) {
    if (weights[n] > kMostOfBlock) return {-1, 0, NAN, 0};
    max_logit = block_max[n] > max_logit ? block_max[n] : max_logit;
  }
  if (max_logit == -INFINITY) return {-1, 0, NAN, 0};

  // What a weight of a block is worth beside those of the block with the largest logit.
  const float rate = rate_of(temperature);
  const auto worth = [&](int64_t n) {
    return double(power(splat((block_max[n] - max_logit) * rate))[0]) * 0x1p-40;
  };
  const auto scaled_weight = [&](int64_t n) {
    return static_cast<int64_t>(double(weights[n]) * worth(n));
  };
  int64_t total = 0;
  for (int64_t n = 0; n < blocks; ++n) total += scaled_weight(n);

  int64_t n = 0, within = 0;
  if (temperature == 0) {
    while (block_max[n] != max_logit) ++n;
  } else {
    int64_t target = static_cast<int64_t>(uniform * double(total));
    if (target >= total) target = total - 1;
    for (int64_t s; target >= (s = scaled_weight(n)); ++n) target -= s;
    within = static_cast<int64_t>(double(target) / worth(n));
    if (within >= weights[n]) within = weights[n] - 1;
  }
  return {n, within, max_logit, double(total) * 0x1p-40};
}

static inline float logprob_of(const Choice& choice, float logit, float temperature) {
  const double divisor = temperature == 0 ? 1.0 : temperature;
  const double above = (double(logit) - double(choice.max_logit)) / divisor;
  return static_cast<float>(above - ::log(choice.total));
}
}  // namespace r1::R1_ISA
