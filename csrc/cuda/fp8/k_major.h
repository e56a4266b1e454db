// Operands of FP8 products as the tensor cores and the copies of tiles take them.
#pragma once

#include "cuda/common/stream.h"

namespace r1 {
// Rows of codes along the reduction, `pitch` bytes apart: a multiple of 16, as the address is. The
// experts' matrices follow one another.
struct KMajor {
  Tensor codes;
  int64_t experts, rows, columns, pitch;
};

// Codes [R, C] or [E, R, C], or if `transposed` […, C, R]: as they lie where they can be taken so, else copied.
KMajor k_major(const OnDevice& device, const Tensor& codes, bool transposed);
}  // namespace r1
