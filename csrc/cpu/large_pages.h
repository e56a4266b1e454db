// Memory that is written once, in pages large enough not to matter.
#pragma once

#include <sys/mman.h>

#include "common/op.h"

namespace r1 {
namespace {  // Tensor itself is hidden in each library
// An output or scratch that is written once and is large: with large pages, if the system lets us,
// it costs a small part of the page faults.
inline void large_pages(void* p, int64_t bytes) {
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(p) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

inline Tensor in_large_pages(Tensor out) {
  large_pages(out.data_ptr(), out.numel() * out.element_size());
  return out;
}

inline Tensor new_output(const Tensor& like, std::initializer_list<int64_t> sizes,
                         ScalarType dtype) {
  return in_large_pages(new_empty(like, sizes, dtype));
}

inline Tensor new_output(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return new_output(like, sizes, like.scalar_type());
}
}  // namespace
}  // namespace r1
