// The forward pass of logprob: what its kernels share, and the choice between them.
#pragma once

#include <cassert>
#include <cstdint>
#include <type_traits>

#include "cuda/common/elements.h"
#include "cuda/head/softmax.h"
#include "cuda/common/stream.h"

namespace r1 {
struct LogprobForward {
  const void* logits;
  const int64_t* target;
  int64_t rows, columns;
  bool bf16;
  LogitOptions options;
  float *logprob, *entropy, *lse;  // entropy: null where nobody wants it

  template <class T>
  __device__ const T* row(int64_t t) const {
    return static_cast<const T*>(logits) + t * columns;
  }
};

// The largest of the elements of a few groups; NaN does not count.
template <int N>
__device__ inline float largest_of(const float (&x)[N]) {
  float largest = x[0];
#pragma unroll
  for (int i = 1; i < N; ++i) largest = fmaxf(largest, x[i]);
  return largest;
}
template <int N>
__device__ inline float largest_bf16(const uint4 (&raw)[N]) {
  uint32_t pair = raw[0].x;
#pragma unroll
  for (int k = 0; k < N; ++k)
    pair = max_bf16(pair, max_bf16(max_bf16(raw[k].x, raw[k].y), max_bf16(raw[k].z, raw[k].w)));
  return fmaxf(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000));
}

template <class T, bool kPlain, bool kWeighted, int N>
__device__ inline void add_groups(Statistics<kWeighted>& s, const uint4 (&raw)[N],
                                  const RowScale<kPlain>& scale) {
  constexpr int kSize = kGroup<T>;
  float u[N * kSize];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    float part[kSize];
    unpack(raw[k], part);
#pragma unroll
    for (int i = 0; i < kSize; ++i) u[k * kSize + i] = scale(part[i]);
  }
  const float largest = kPlain && sizeof(T) == 2 ? largest_bf16(raw) : largest_of(u);
  s.add(u, largest, scale.log2_unit);
}

constexpr int kBatch = 4;  // groups a thread has under way at once

// Adds one thread's part of `groups` groups. Which thread takes which depends on their number alone,
// never on where the row lies in memory. before(g) comes before a read of group g and of those of
// the same batch.
template <int kThreads, class T, bool kPlain, bool kWeighted, class Before>
__device__ inline void add_part(Statistics<kWeighted>& s, const T* x, int groups,
                                const RowScale<kPlain>& scale, const Before& before) {
  const uint32_t skew = reinterpret_cast<uintptr_t>(x) % 16;
  auto add_all = [&](auto aligned) {  // known, so that loads have no branches
    auto load = [&](int g) {
      return load_group(x + int64_t{g} * kGroup<T>, aligned.value ? 0 : skew);
    };
    int g = threadIdx.x;
    for (; g + (kBatch - 1) * kThreads < groups; g += kBatch * kThreads) {
      before(g);
      uint4 raw[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) raw[k] = load(g + k * kThreads);
      add_groups<T>(s, raw, scale);
    }
    for (; g < groups; g += kThreads) {
      before(g);
      const uint4 raw[1] = {load(g)};
      add_groups<T>(s, raw, scale);
    }
  };
  if (skew == 0) add_all(std::true_type{});
  else add_all(std::false_type{});
}

// The end of a row, which one warp makes: the columns after the last whole group, one a lane behind
// those that take the statistics of the block's warps, and the target's logit. Both are asked for
// when this is made, so that nobody waits for them later.
template <int kWarps, class T, bool kPlain, bool kWeighted>
struct RowEnd {
  RowScale<kPlain> scale;
  float logit = 0;
  bool in_rest = false;

  __device__ RowEnd(const LogprobForward& in, int64_t t) : scale(in.options, t) {
    static_assert(kWarps > 0 && kWarps + kGroup<T> <= kWarp);
    const int lane = threadIdx.x % kWarp, rest = in.columns % kGroup<T>;
    in_rest = lane >= kWarps && lane < kWarps + rest;
    if (lane != 0 && !in_rest) return;
    const int64_t y = in.target[t];
    assert(y >= 0 && y < in.columns && "logprob: target: expected 0 <= target < V");
    logit = to_float(in.row<T>(t)[in_rest ? in.columns - rest + lane - kWarps : y]);
  }

  __device__ void finish(const LogprobForward& in, int64_t t, const Statistics<kWeighted>* warps) {
    const int lane = threadIdx.x % kWarp;
    const float u[1] = {scale(logit)};
    auto s = lane < kWarps ? warps[lane] : Statistics<kWeighted>::none();
    if (in_rest) s.add(u, u[0], scale.log2_unit);
    s.merge_lanes(scale.log2_unit);
    if (lane != 0) return;
    const float log_sum = logf(s.sum);
    in.logprob[t] = (u[0] - s.max) * scale.unit - log_sum;
    in.lse[t] = s.max * scale.unit + log_sum;
    if constexpr (kWeighted) in.entropy[t] = log_sum - s.weighted / s.sum * kLn2;
  }
};

// Calls body(element, plain): an element of the type of the logits, and a constant.
template <class Body>
void with_kernel(bool bf16, const LogitOptions& options, const Body& body) {
  auto with_element = [&](auto element) {
    if (options.are_plain()) body(element, std::true_type{});
    else body(element, std::false_type{});
  };
  if (bf16) with_element(uint16_t{});
  else with_element(float{});
}
// The same of a forward pass: body(element, plain, weighted), the last for an entropy.
template <class Body>
void with_kernel(const LogprobForward& in, const Body& body) {
  with_kernel(in.bf16, in.options, [&](auto element, auto plain) {
    if (in.entropy != nullptr) body(element, plain, std::true_type{});
    else body(element, plain, std::false_type{});
  });
}

// On sm_90. False, and nothing launched, for a row too long for the shared memory of a cluster; it
// depends on V alone, so that a row's result never depends on its batch.
bool logprob_on_sm90(const OnDevice& device, const LogprobForward& in);
}  // namespace r1
