// The distribution of a row of logits, with exp as one instruction: 2^(z·log2(e)).
#pragma once

#include <cstdint>

#include "cuda/common/ptx.h"

namespace r1 {
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kLow = -1e30f;         // stands for -inf where a difference must stay finite
constexpr float kNegligible = -200.0f;  // 2^x is 0 from here on, and x·2^x must not be -inf·0
constexpr int kWarp = 32;

struct LogitOptions {
  float logit_scale, softcap;  // softcap 0 for none
  const float* temperature;    // one a row, or null for 1

  bool are_plain() const { return softcap == 0 && logit_scale > 0; }
};

// z = unit·u, with unit positive. u is x itself where the options are plain, else
// tanh(logit_scale·x/softcap), or ±x without a softcap.
template <bool kPlain>
struct RowScale {
  float inner, unit, log2_unit;  // the last is unit·log2(e)
  bool capped;

  __device__ RowScale(const LogitOptions& options, int64_t row) {
    const float t = options.temperature != nullptr ? options.temperature[row] : 1.0f;
    const float size = fabsf(options.logit_scale);
    capped = !kPlain && options.softcap != 0;
    inner = options.logit_scale / (capped ? options.softcap : size);
    unit = (capped ? options.softcap : size) / t;
    log2_unit = unit * kLog2E;
  }
  __device__ float operator()(float x) const {
    return kPlain ? x : capped ? tanhf(inner * x) : inner * x;
  }
  __device__ float slope(float u) const {  // dz/dx
    return kPlain ? unit : inner * unit * (capped ? 1 - u * u : 1.0f);
  }
};

// Of a part of a row, with d = (u - max)·log2_unit: the maximum of u, Σ 2^d and, if wanted, Σ 2^d·d.
// The difference comes first, so that the largest term is 1 exactly.
template <bool kWeighted>
struct Statistics {
  float max, sum, weighted;

  __device__ static Statistics none() { return {kLow, 0.0f, 0.0f}; }

  // `largest` is that of the u, or anything below kLow.
  template <int N>
  __device__ void add(const float (&u)[N], float largest, float log2_unit) {
    move_to(fmaxf(max, largest), log2_unit);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float d = (u[i] - max) * log2_unit, e = fast_exp2(d);
      sum += e;
      if constexpr (kWeighted) weighted = fmaf(e, fmaxf(d, kNegligible), weighted);
    }
  }
  __device__ void merge(Statistics other, float log2_unit) {
    const float merged = fmaxf(max, other.max);
    move_to(merged, log2_unit);
    other.move_to(merged, log2_unit);
    sum += other.sum;
    if constexpr (kWeighted) weighted += other.weighted;
  }
  // In lane 0, those of the lanes of a warp, always merged in the same order.
  __device__ void merge_lanes(float log2_unit) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      Statistics other = none();
      other.max = __shfl_down_sync(~0u, max, offset);
      other.sum = __shfl_down_sync(~0u, sum, offset);
      if constexpr (kWeighted) other.weighted = __shfl_down_sync(~0u, weighted, offset);
      merge(other, log2_unit);
    }
  }

 private:
  __device__ void move_to(float new_max, float log2_unit) {
    const float d = (max - new_max) * log2_unit, factor = fast_exp2(d);
    if constexpr (kWeighted) weighted = factor * fmaf(d, sum, weighted);
    sum *= factor;
    max = new_max;
  }
};
}  // namespace r1
