// What every op's registration section needs: tensors of libtorch's stable ABI, checks that name
// op, argument, expected and got, and small helpers to make and read tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

// The message is built of everything after the condition.
#define R1_CHECK(condition, ...) \
  do {                           \
    if (!(condition)) ::r1::fail(__VA_ARGS__); \
  } while (0)

namespace r1 {
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline bool is_bf16(const Tensor& t) { return t.scalar_type() == ScalarType::BFloat16; }

inline void expect_numel(const char* op, const char* name, const Tensor& t, int64_t count) {
  R1_CHECK(t.numel() == count, op, ": ", name, ": expected ", count, " elements, got ", t.numel());
}

inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline Tensor to_dtype(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? dense(t) : dense(torch::stable::to(t, dtype));
}

inline Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

template <class T>
T* data_or_null(const std::optional<Tensor>& t) {
  return t ? static_cast<T*>(t->data_ptr()) : nullptr;
}
}  // namespace r1
