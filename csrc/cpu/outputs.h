// Outputs of kernels: large ones lie in blocks.
#pragma once

#include "common/op.h"
#include "cpu/blocks.h"

namespace r1 {
namespace {  // Tensor itself is hidden in each library
// `empty` as it is, or the like of it in a block: PyTorch's own memory has not been touched yet.
inline Tensor in_block(Tensor empty) {
  const int64_t bytes = empty.numel() * empty.element_size();
  if (bytes < kLeastBlock) return empty;
  return torch::stable::from_blob(take_block(bytes), empty.sizes(), empty.strides(), empty.device(),
                                  empty.scalar_type(), &return_block);
}

inline Tensor new_output(const Tensor& like, std::initializer_list<int64_t> sizes,
                         ScalarType dtype) {
  return in_block(new_empty(like, sizes, dtype));
}

inline Tensor new_output(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return new_output(like, sizes, like.scalar_type());
}
}  // namespace
}  // namespace r1
