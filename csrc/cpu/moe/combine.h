// What moe_combine and its backward pass know of one token: its k rows and their weights.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace r1 {
struct MoeCombine {
  bool bf16;
  int64_t width, top_k;
  const int32_t* inverse;  // [T, k]
  const float* weights;    // [T, k], or null for 1
  const void* rows;        // [P, H]
};
struct MoeCombineBackward {
  const int32_t* gather;  // [P]
  const void* grad;       // [T, H]
  void* drows;            // [P, H]
  float* dweights;        // [T, k], zeros
};
}  // namespace r1

#ifdef R1_BASELINE
R1_DECLARE(void moe_combine_token(const MoeCombine&, int64_t, void*))
R1_DECLARE(void moe_combine_backward_row(const MoeCombine&, const MoeCombineBackward&, int64_t))
#endif
