// The product of fp8_gemm, for kernels that have more to do around it.
#pragma once

#include "cuda/common/stream.h"

namespace r1 {
// out = a·bᵀ + bias, or a·b if `transposed`; `bias` of float32.
void fp8_multiply(const Tensor& a, const Tensor& a_scale, const Tensor& b, const Tensor& b_scale,
                  const std::optional<Tensor>& bias, bool transposed, const Tensor& out);
}  // namespace r1
