// What fp8_quantize hands to the kernel of each instruction set.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"

namespace r1 {
enum class Fp8Block { row, column, square };

struct Fp8Quantize {
  const void* x;
  bool bf16;
  int64_t rows, columns;  // of the result, and of each expert
  const int32_t* gather;  // row of the result → top_k·row of x, −1 for zeros; null: the same row
  int64_t top_k;
  Fp8Block block;
  bool power_of_two;
  uint8_t *data, *data_t;  // data_t: null unless wanted
  float *scale, *scale_t;
};
}  // namespace r1

#ifdef R1_BASELINE
// The tile of 128 × 128 at (row, column).
R1_DECLARE(void fp8_quantize_tile(const Fp8Quantize&, int64_t row, int64_t column))
// Rows r0 to r1 in blocks of 1 × 128, where nothing else is wanted.
R1_DECLARE(void fp8_quantize_rows(const Fp8Quantize&, int64_t r0, int64_t r1))
#endif
