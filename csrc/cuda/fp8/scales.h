// Scales of FP8 operands as the copies of a product take them.
#pragma once

#include "cuda/fp8/product.h"
#include "cuda/common/stream.h"

namespace r1 {
// One scale for each row, those of a block of the reduction beside each other.
struct ScalesOfRows {
  Tensor memory;
  RowScales scales;
  int64_t expert_step;
};

// Of `scale`, with one scale for each row, each 128 of them or all, along `row_dim`, and each block or
// all of them along `block_dim`; a third dimension before them counts experts. As they lie where a
// copy can take them, which is where rows have stride 1 and blocks a multiple of 4, else copied.
ScalesOfRows scales_of_rows(const OnDevice& device, const Tensor& scale, int64_t rows, int row_dim,
                            int block_dim);

// Of `scale`, as it lies.
inline FP8Scales scales_of(const Tensor& scale, int64_t rows, int row_dim, int block_dim) {
  const int64_t count = scale.size(row_dim);
  return {data<const float>(scale), count == 1 ? 31 : count == rows ? 0 : 7, scale.stride(row_dim),
          scale.size(block_dim) == 1 ? 0 : scale.stride(block_dim)};
}
}  // namespace r1
