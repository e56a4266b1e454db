// The distribution of a row of logits, with exp as one instruction: 2^(z·log2(e)).
#pragma once

#include <cstdint>

#include "cuda/ptx.h"

namespace r1 {
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kLow = -1e30f;         // stands for -inf where a difference must stay finite
constexpr float kNegligible = -200.0f;  // 2^x is 0 from here on, and x·2^x must not be -inf·0
constexpr int kWarp = 32;

struct LogitOptions {
  float logit_scale, softcap;  // softcap 0 for none
  const float* temperature;    // one a row, or null for 1
};

// z = unit·u, where u = logit_scale·x, or tanh(logit_scale·x/softcap), and unit is positive.
template <bool kCapped>
struct RowScale {
  float inner, unit;

  __device__ RowScale(const LogitOptions& options, int64_t row) {
    const float t = options.temperature != nullptr ? options.temperature[row] : 1.0f;
    inner = kCapped ? options.logit_scale / options.softcap : options.logit_scale;
    unit = (kCapped ? options.softcap : 1.0f) / t;
  }
  __device__ float operator()(float x) const { return kCapped ? tanhf(inner * x) : inner * x; }
  __device__ float slope(float u) const {  // dz/dx
    return inner * unit * (kCapped ? 1 - u * u : 1.0f);
  }
};

// Of a part of a row, with d = (u - max)·log2_unit, log2_unit being unit·log2(e): the maximum of u,
// Σ 2^d and Σ 2^d·d. The difference comes first, so that the largest term is 1 exactly.
struct Statistics {
  float max, sum, weighted;

  __device__ static Statistics none() { return {kLow, 0.0f, 0.0f}; }

  template <int N>
  __device__ void add(const float (&u)[N], float log2_unit) {
    float top = max;
#pragma unroll
    for (int i = 0; i < N; ++i) top = fmaxf(top, u[i]);
    move_to(top, log2_unit);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float d = (u[i] - top) * log2_unit, e = fast_exp2(d);
      sum += e;
      weighted = fmaf(e, fmaxf(d, kNegligible), weighted);
    }
  }
  __device__ void merge(Statistics other, float log2_unit) {
    const float top = fmaxf(max, other.max);
    move_to(top, log2_unit);
    other.move_to(top, log2_unit);
    sum += other.sum;
    weighted += other.weighted;
  }

 private:
  __device__ void move_to(float top, float log2_unit) {
    const float d = (max - top) * log2_unit, factor = fast_exp2(d);
    weighted = factor * fmaf(d, sum, weighted);
    sum *= factor;
    max = top;
  }
};

// In lane 0, the statistics of `count` lanes, a power of two.
__device__ inline Statistics over_lanes(Statistics mine, int count, float log2_unit) {
  for (int offset = count / 2; offset > 0; offset /= 2) {
    Statistics other;
    other.max = __shfl_down_sync(~0u, mine.max, offset);
    other.sum = __shfl_down_sync(~0u, mine.sum, offset);
    other.weighted = __shfl_down_sync(~0u, mine.weighted, offset);
    mine.merge(other, log2_unit);
  }
  return mine;
}

// In thread 0, the statistics of a block, always merged in the same order.
template <int kThreads>
__device__ inline Statistics over_block(Statistics mine, float log2_unit) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ Statistics warps[kWarps];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  mine = over_lanes(mine, kWarp, log2_unit);
  if (lane == 0) warps[warp] = mine;
  __syncthreads();
  if (warp == 0)
    mine = over_lanes(lane < kWarps ? warps[lane] : Statistics::none(), kWarps, log2_unit);
  return mine;
}
}  // namespace r1
