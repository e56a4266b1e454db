// The type of an op's str argument: PyTorch up to 2.13 converts one to std::string by a copy of
// another that it never frees (pytorch/pytorch#191340), some 48 bytes at every call.
#pragma once

#include <string>

#include <torch/csrc/stable/library.h>

namespace r1 {
struct Text : std::string {
  using std::string::string;
};
}  // namespace r1

HIDDEN_NAMESPACE_BEGIN(torch, stable, detail)
// Takes the string of the value, which is freed.
template <>
struct ToImpl<r1::Text> {
  static r1::Text call(StableIValue value, uint64_t, bool) {
    const auto handle = to<StringHandle>(value);
    size_t length;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    const char* characters;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &characters));
    r1::Text text(characters, length);
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
HIDDEN_NAMESPACE_END(torch, stable, detail)
