// The forward pass of logprob: what its two kernels share, and the choice between them.
#pragma once

#include <cassert>
#include <cstdint>

#include "cuda/elements.h"
#include "cuda/softmax.h"
#include "cuda/stream.h"

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

  // The logit of target y. Asked for early, it costs no wait at the end.
  template <class T>
  __device__ float own(int64_t t, int64_t y) const {
    assert(y >= 0 && y < columns && "logprob: target: expected 0 <= target < V");
    return to_float(row<T>(t)[y]);
  }

  template <bool kCapped>
  __device__ void finish(int64_t t, float own_logit, const RowScale<kCapped>& scale,
                         const Statistics& s) const {
    const float own = scale(own_logit), log_sum = logf(s.sum);
    logprob[t] = (own - s.max) * scale.unit - log_sum;
    lse[t] = s.max * scale.unit + log_sum;
    if (entropy != nullptr) entropy[t] = log_sum - s.weighted / s.sum * kLn2;
  }
};

constexpr int kBatch = 4;  // groups a thread has under way at once

// The part of one thread in the statistics of `groups` groups. Which thread takes which depends on
// their number alone, never on where the row lies in memory. before(g) comes before a read of group
// g and of those of the same batch.
template <int kThreads, class T, bool kCapped, class Before>
__device__ inline Statistics over_groups(const T* x, int groups, const RowScale<kCapped>& scale,
                                         const Before& before) {
  constexpr int kSize = kGroup<T>;
  const uint32_t skew = reinterpret_cast<uintptr_t>(x) % 16;
  const float log2_unit = scale.unit * kLog2E;
  Statistics s = Statistics::none();
  int g = threadIdx.x;
  for (; g + (kBatch - 1) * kThreads < groups; g += kBatch * kThreads) {
    before(g);
    uint4 raw[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k)
      raw[k] = load_group(x + int64_t{g + k * kThreads} * kSize, skew);
    float u[kBatch * kSize];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      float part[kSize];
      unpack(raw[k], part);
#pragma unroll
      for (int i = 0; i < kSize; ++i) u[k * kSize + i] = scale(part[i]);
    }
    s.add(u, log2_unit);
  }
  for (; g < groups; g += kThreads) {
    before(g);
    float u[kSize];
    unpack(load_group(x + int64_t{g} * kSize, skew), u);
#pragma unroll
    for (int i = 0; i < kSize; ++i) u[i] = scale(u[i]);
    s.add(u, log2_unit);
  }
  return s;
}

// The columns after the last whole group, one a thread.
template <class T, bool kCapped>
__device__ inline void add_rest(Statistics& s, const T* x, int64_t columns,
                                const RowScale<kCapped>& scale) {
  const int64_t column = columns - columns % kGroup<T> + threadIdx.x;
  if (column >= columns) return;
  const float u[1] = {scale(to_float(x[column]))};
  s.add(u, scale.unit * kLog2E);
}

// Calls body(element, capped): an element of the type of the logits, and a constant.
template <class Body>
void with_kernel(bool bf16, const LogitOptions& options, const Body& body) {
  auto with_cap = [&](auto element) {
    if (options.softcap != 0) body(element, std::true_type{});
    else body(element, std::false_type{});
  };
  if (bf16) with_cap(uint16_t{});
  else with_cap(float{});
}

// On sm_90, a cluster of blocks a row. False, and nothing launched, for a row too long for their
// shared memory; it depends on V alone, so that a row's result never depends on its batch.
bool logprob_on_clusters(const OnDevice& device, const LogprobForward& in);
}  // namespace r1
