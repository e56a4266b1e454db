// Rows of floats to FP8 codes in blocks of (1, 128), and with them those of the transposed matrix.
#pragma once

#include <cstdint>

#include "cuda/common/stream.h"

namespace r1 {
// The scales of rows lie as products take them: those of a block of 128 beside each other.
struct QuantizedRows {
  unsigned char* data;  // [rows, columns]
  float* scale;         // [⌈columns/128⌉, scale_step]
  int64_t scale_step;
};

struct RowsToQuantize {
  const void* x;
  ScalarType type;
  int64_t step;  // from a row to the next, in elements
  int x_rows, columns;
  const int* gather;  // slots, whose row is that divided by top_k, or null: the rows as they are
  int rows, top_k;
  bool power_of_two;
};

// `transposed` has columns as its rows, and ⌈rows/128⌉·128 of their elements; or no data.
void quantize_rows(const OnDevice& device, const RowsToQuantize& in, const QuantizedRows& out,
                   const QuantizedRows& transposed);

// x [rows, columns], float32 or bfloat16, dense along its rows.
RowsToQuantize rows_of(const Tensor& x, bool power_of_two);

// Scales [rows, blocks] whose memory is [blocks, step], step being `rows` up to a multiple of 4.
Tensor new_scales(const Tensor& like, int64_t rows, int64_t blocks);

inline QuantizedRows quantized(const Tensor& data, const Tensor& scale) {
  return {static_cast<unsigned char*>(data.data_ptr()), static_cast<float*>(scale.data_ptr()),
          scale.stride(1)};
}
}  // namespace r1
