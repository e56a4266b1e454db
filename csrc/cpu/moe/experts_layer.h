// What moe_experts and its backward pass do around the kernels: checks, groups, and sums by token.
#pragma once

#include "cpu/moe/grouped_mm_groups.h"
#include "cpu/moe/combine.h"
#include "cpu/moe/experts.h"
#include "cpu/moe/slots.h"

namespace r1 {
namespace {  // Tensor itself is hidden in each library
// Before rows are filled up to whole units.
inline void check_experts(const char* op, const Tensor& x, const Tensor& gate_up,
                          const Tensor& down) {
  R1_CHECK(x.dim() == 2 && gate_up.dim() == 3 && down.dim() == 3 &&
               gate_up.size(0) == down.size(0) && gate_up.size(1) == 2 * down.size(2) &&
               gate_up.size(2) == x.size(1) && down.size(1) == x.size(1) &&
               gate_up.scalar_type() == x.scalar_type() && down.scalar_type() == x.scalar_type(),
           op, ": gate_up, down: expected [E, 2I, H] and [E, H, I] of the H and dtype of x");
}

struct ExpertsLayer {
  Tensor gate_up, down, weights;
  Slots slots;
  Experts kernel;
  Groups groups;

  ExpertsLayer(const char* op, const Tensor& x, const Tensor& gate_up_, const Tensor& down_,
               const Tensor& weights_, const Tensor& offsets, const Tensor& gather,
               const Tensor& inverse)
      : gate_up(gate_up_), down(down_), weights(to_dtype(weights_, ScalarType::Float)),
        slots(op, gather, inverse),
        kernel{is_bf16(x), x.size(1), gate_up.size(1) / 2, slots.top_k, slots.gather,
               gate_up.data_ptr(), down.data_ptr()},
        groups(op, offsets, slots.rows, is_bf16(x), slots.gather) {
    R1_CHECK(groups.experts == gate_up.size(0), op, ": offsets: expected E + 1 = ",
             gate_up.size(0) + 1, " of them, got ", groups.experts + 1);
    R1_CHECK(slots.tokens == x.size(0) && weights.numel() == inverse.numel(), op,
             ": weights, inverse: expected shapes [T, k] with the T of x");
  }

  int64_t units(int64_t elements) const { return kernel.bf16 ? (elements + 1) / 2 : elements; }

  // Rows of experts to sums by token, in the order of the choices.
  void combine(void* rows, const float* weights, const Tensor& out) const {
    const int64_t row_bytes = kernel.width * out.element_size();
    groups.clear_others(rows, row_bytes);
    const MoeCombine c{kernel.bf16, kernel.width, slots.top_k, slots.inverse, weights, rows};
    const auto sum = R1_DISPATCH(moe_combine_token);
    parallel_rows(slots.tokens, slots.top_k * row_bytes,
                  [&](int64_t t) { sum(c, t, data<char>(out) + t * row_bytes); });
  }
};
}  // namespace
}  // namespace r1
