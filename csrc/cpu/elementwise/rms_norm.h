// What rms_norm and its backward pass hand to the kernel of each instruction set.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace r1 {
struct RmsNorm {
  bool bf16, round_before_weight;
  int64_t width;
  float eps;
  const float* scale;     // offset + weight, as rms_norm_scale writes it
  const void *x, *added;  // [R, H]; null without a residual
  void *y, *h;            // [R, H]; null without a residual
  float* rstd;            // [R]
};

struct RmsNormBackward {
  bool bf16, round_before_weight;
  int64_t width;
  const float* scale;
  const void *dy, *dh, *h;  // [R, H]; dh may be null
  const float* rstd;
  void* dx;
};
}  // namespace r1

#ifdef R1_BASELINE
// offset + weight in fp32, in the order that the kernels read it in, with room for a whole chunk.
R1_DECLARE(void rms_norm_scale(bool bf16, const void* weight, float offset, int64_t width, float* scale))
// Rows [begin, end). Of the backward pass also their sum for the weight's gradient, added to `dscale`
// in that order, unless it is null.
R1_DECLARE(void rms_norm_rows(const RmsNorm&, int64_t begin, int64_t end))
R1_DECLARE(void rms_norm_backward_rows(const RmsNormBackward&, int64_t begin, int64_t end, float* dscale))
// The sum of `count` such sums, `stride` apart, in order.
R1_DECLARE(void rms_norm_dweight(bool bf16, const float* partials, int64_t count, int64_t stride,
                                 int64_t width, void* dweight))
#endif
