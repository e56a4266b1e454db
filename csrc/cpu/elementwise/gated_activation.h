// What gated_activation and its backward pass hand to the kernel of each instruction set.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace r1 {
enum class Activation { silu, gelu_tanh, gelu };

struct GatedActivation {
  bool bf16;
  Activation activation;
  int64_t width;
  const void *gate, *up;
  int64_t gate_row, up_row;  // strides of rows, in elements
  void* out;                 // [R, I]
};

struct GatedActivationBackward {
  GatedActivation forward;  // its `out` is dgate
  const void* dy;           // [R, I]
  void* dup;                // [R, I]
};
}  // namespace r1

#ifdef R1_BASELINE
// Columns [begin, end) of a row.
R1_DECLARE(void gated_activation_columns(const GatedActivation&, int64_t row, int64_t begin, int64_t end))
R1_DECLARE(void gated_activation_backward_columns(const GatedActivationBackward&, int64_t row,
                                                  int64_t begin, int64_t end))
#endif
