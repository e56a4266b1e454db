// Rows of tensors around the kernels: scratch memory, rows as units of gemm.h, rows written back.
#pragma once

#include <cstdlib>
#include <cstring>
#include <vector>

#include "common/op.h"
#include "cpu/common/blocks.h"
#include "cpu/common/simd.h"

namespace r1 {
namespace {  // Tensor itself is hidden in each library
using OptionalTensor = std::optional<Tensor>;

template <class T>
struct Buffer {  // uninitialised, aligned for whole vectors
  explicit Buffer(int64_t count) : large(int64_t(count * sizeof(T)) >= kLeastBlock) {
    const size_t bytes = (count * sizeof(T) / 64 + 1) * 64;
    p = static_cast<T*>(large ? take_block(bytes) : std::aligned_alloc(64, bytes));
    R1_CHECK(p, "r1kernels: out of memory for ", bytes, " bytes of scratch");
  }
  ~Buffer() { large ? return_block(p) : std::free(p); }
  Buffer(const Buffer&) = delete;
  const bool large;
  T* p;
  T& operator[](int64_t i) { return p[i]; }
};

// Rows of H elements (the last dimension) as rows of whole units: in place, or copied with a zero at
// the end where a bf16 row has an odd length.
inline Tensor whole_units(const Tensor& t) {
  const int64_t last = t.dim() - 1, width = t.size(last);
  if (!is_bf16(t) || width % 2 == 0) return dense(t);
  std::vector<int64_t> sizes(t.sizes().begin(), t.sizes().end());
  ++sizes[last];
  Tensor padded = torch::stable::new_zeros(t, sizes);
  Tensor view = torch::stable::narrow(padded, last, 0, width);
  torch::stable::copy_(view, t);
  return padded;
}

inline void store_row(void* out, bool bf16, int64_t at, const float* row, int64_t width) {
  if (!bf16) {
    std::memcpy(static_cast<float*>(out) + at, row, width * sizeof(float));
    return;
  }
  auto* p = static_cast<uint16_t*>(out) + at;
  for (int64_t j = 0; j < width; ++j) p[j] = scalar::float_to_bf16(row[j]);
}
}  // namespace
}  // namespace r1
