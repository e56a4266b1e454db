// What fp8_swiglu and its backward pass hand to the kernel of each instruction set.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace r1 {
struct Fp8Rows {  // null where they are not wanted
  uint8_t* data;
  float* scale;
};

struct Fp8Swiglu {
  const void* h;  // [P, 2I]
  bool bf16;
  int64_t rows, inner;
  bool power_of_two;
  Fp8Rows a;  // [P, I]
};

struct Fp8SwigluBackward {
  Fp8Swiglu forward;  // its `a` is unused
  const void* da;     // [P, I]
  const float* weights;
  Fp8Rows dh, dh_t, a_t;  // [P, 2I], [2I, P'], [I, P']
  float* dweights;        // [P][I/128 rounded up]: one sum for each block
};
}  // namespace r1

#ifdef R1_BASELINE
// Tiles of 128 × 128 at (row, column): of the activation; of the gradient of h; of the activation
// times the row's weight.
R1_DECLARE(void fp8_swiglu_tile(const Fp8Swiglu&, int64_t row, int64_t column))
R1_DECLARE(void fp8_swiglu_gradient_tile(const Fp8SwigluBackward&, int64_t row, int64_t column))
R1_DECLARE(void fp8_swiglu_weighted_tile(const Fp8SwigluBackward&, int64_t row, int64_t column))
#endif
