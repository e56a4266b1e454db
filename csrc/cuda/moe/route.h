// Scores and weights of a token's choices, in float64: what moe_route and its gradient share. A warp
// has a token, and its lane j the token's choice j.
#pragma once

#include <cstdint>
#include <string>

#include "common/text.h"
#include "cuda/common/double_math.h"
#include "cuda/common/elements.h"
#include "cuda/moe/sort.h"

namespace r1 {
constexpr int kMaxTopK = 32;  // a choice a lane
constexpr double kWeightEps = 1e-20;

enum class Score { kSigmoid, kSoftmax, kSqrtSoftplus };

struct Scoring {
  const void* logits;  // [tokens, experts]
  bool bf16;
  int64_t tokens;
  int experts, top_k;
  Score score;
  bool topk_first, normalises;
  double scale;

  // Whether a weight depends on all logits of its row.
  __device__ bool over_all() const { return score == Score::kSoftmax && !topk_first; }
};

template <class T>
__device__ inline T sum_over_warp(T x) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(kAllLanes, x, by);
  return x;
}
__device__ inline float max_over_warp(float x) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, by));
  return x;
}

struct Softmax {
  float max;
  double sum;

  __device__ double unscaled(float z) const { return exponential(double{z} - double{max}); }
  __device__ double operator()(float z) const { return unscaled(z) * reciprocal(sum); }
};

// The logits of a token.
struct Row {
  const void* logits;
  bool bf16;

  __device__ Row(const Scoring& in, int64_t t)
      : logits(static_cast<const char*>(in.logits) + t * in.experts * (in.bf16 ? 2 : 4)),
        bf16(in.bf16) {}
  __device__ float operator[](int e) const {
    return bf16 ? to_float(static_cast<const uint16_t*>(logits)[e])
                : static_cast<const float*>(logits)[e];
  }
  __device__ Softmax softmax(int experts) const {
    Softmax all{-INFINITY, 0.0};
    for (int e = threadIdx.x % 32; e < experts; e += 32) all.max = fmaxf(all.max, (*this)[e]);
    all.max = max_over_warp(all.max);
#pragma unroll 1  // as a loop it needs few registers
    for (int e = threadIdx.x % 32; e < experts; e += 32) all.sum += all.unscaled((*this)[e]);
    all.sum = sum_over_warp(all.sum);
    return all;
  }
};

// Choice j of a token, for lane j; `there` is false where it has none.
struct Choice {
  bool there;
  float z;
  double score;  // not yet normalised

  // all: the softmax of the row, if in.over_all().
  __device__ Choice(const Scoring& in, const Row& row, int64_t id, const Softmax& all)
      : there(id >= 0 && id < in.experts), z(there ? row[static_cast<int>(id)] : -INFINITY) {
    if (in.score == Score::kSigmoid) {
      score = sigmoid(z);
    } else if (in.score == Score::kSqrtSoftplus) {
      score = sqrt_softplus(z);
    } else {
      Softmax of = all;
      if (in.topk_first) {
        of.max = max_over_warp(z);
        of.sum = sum_over_warp(there ? of.unscaled(z) : 0.0);
      }
      score = of(z);
    }
    if (!there) score = 0.0;
  }
};

// The host's side: checks, and the names of options.
inline Scoring scoring_of(const char* op, const Tensor& logits, int64_t top_k,
                          const std::string& score, const std::string& order, bool normalize,
                          double scale) {
  R1_CHECK(logits.dim() == 2, op, ": logits: expected shape [T, E], got ", logits.dim(),
           " dimensions");
  R1_CHECK(is_bf16(logits) || logits.scalar_type() == ScalarType::Float, op,
           ": logits: expected float32 or bfloat16");
  const int64_t experts = logits.size(1);
  R1_CHECK(experts >= 1 && experts <= kMaxExperts, op, ": logits: expected 1 ≤ E ≤ ", kMaxExperts,
           ", got ", experts);
  R1_CHECK(top_k >= 1 && top_k <= std::min<int64_t>(kMaxTopK, experts), op,
           ": top_k: expected 1 to ", std::min<int64_t>(kMaxTopK, experts),
           " on CUDA, got ", top_k);
  R1_CHECK(order == "score_first" || order == "topk_first", op,
           ": order: expected score_first or topk_first, got ", order);
  const bool topk_first = order == "topk_first", softmax = score == "softmax";
  R1_CHECK(score == "sigmoid" || softmax || score == "sqrtsoftplus", op,
           ": score: expected sigmoid, softmax or sqrtsoftplus, got ", score);
  return {logits.data_ptr(), is_bf16(logits), logits.size(0), static_cast<int>(experts),
          static_cast<int>(top_k),
          softmax ? Score::kSoftmax
                  : score == "sigmoid" ? Score::kSigmoid : Score::kSqrtSoftplus,
          topk_first, normalize && !(softmax && topk_first), scale};
}
}  // namespace r1
