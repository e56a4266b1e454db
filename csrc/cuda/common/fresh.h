// Fresh tensors past the dispatcher: torch::stable::new_empty looks its operator up by name and packs
// every argument at each call, several microseconds for each of an op's outputs.
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "common/op.h"

namespace r1 {
// Contiguous and not yet written, on the device of `like`.
inline Tensor fresh(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  constexpr size_t kMost = 4;
  R1_CHECK(sizes.size() <= kMost, "fresh: expected at most ", kMost, " dimensions");
  std::array<int64_t, kMost> strides{};
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes.begin()[i], 1);
  }
  int32_t device = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  const auto code =
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.begin(), strides.data(), code,
                                                         device, like.get_device_index(), &made));
  return Tensor(made);
}
}  // namespace r1
