// Outputs of kernels: large ones lie in blocks.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "common/op.h"
#include "cpu/common/blocks.h"

namespace r1 {
namespace {  // Tensor itself is hidden in each library
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// Uninitialised, with the device of `like`; `outermost_first` is how its dimensions lie in memory.
inline Tensor new_block(const Tensor& like, Sizes sizes, const std::vector<int64_t>& outermost_first,
                        ScalarType dtype, int64_t bytes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= sizes[outermost_first[i]])
    strides[outermost_first[i]] = stride;
  return torch::stable::from_blob(take_block(bytes), sizes, strides, like.device(), dtype, &return_block);
}

inline std::vector<int64_t> dimensions(int64_t count) {
  std::vector<int64_t> all(count);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

inline int64_t bytes_of(Sizes sizes, ScalarType dtype) {
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  int64_t bytes = aoti_torch_dtype_element_size(code);
  for (int64_t size : sizes) bytes *= size;
  return bytes;
}

inline Tensor new_output(const Tensor& like, Sizes sizes, ScalarType dtype) {
  const int64_t bytes = bytes_of(sizes, dtype);
  if (bytes < kLeastBlock) return torch::stable::new_empty(like, sizes, dtype);
  return new_block(like, sizes, dimensions(sizes.size()), dtype, bytes);
}

inline Tensor new_output(const Tensor& like, Sizes sizes) {
  return new_output(like, sizes, like.scalar_type());
}

// As torch.empty_like: dimensions lie in the order of x's, without gaps.
inline Tensor output_like(const Tensor& x) {
  const int64_t bytes = bytes_of(x.sizes(), x.scalar_type());
  if (bytes < kLeastBlock) return torch::stable::empty_like(x);
  std::vector<int64_t> order = dimensions(x.dim());
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return x.stride(a) > x.stride(b); });
  return new_block(x, x.sizes(), order, x.scalar_type(), bytes);
}
}  // namespace
}  // namespace r1
