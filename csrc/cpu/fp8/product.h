// Products of FP8 matrices as the kernels take them: plain data, the same for every instruction set.
#pragma once

#include <cstdint>

#include "cpu/fp8/block.h"
#include "cpu/common/isa.h"

namespace r1 {
constexpr int64_t kTileRows = 64;  // rows that share a tile of sums

// The scale of row r in block b of the reduction: p[r / per · row + b · block].
struct Fp8Scale {
  const float* p;
  int64_t per, row, block;
  // Of a row, for all blocks: a division is as long as several products.
  const float* of(int64_t r) const { return p + r / per * row; }
};

enum class Fp8Output { bf16, fp32, fp16, add };  // add: to float32, in place

// out[m][n] = Σ_b sa(m, b)·sb(n, b)·Σ_{k in b} a[m][k]·b[n][k]
struct Fp8Product {
  const uint32_t* a;  // decoded, [M][units], whole units
  int64_t units, depth;
  Fp8Scale a_scale;
  const uint8_t* b;    // codes: b[n·stride + k], or if transposed b[k·stride + n]
  int64_t stride;
  bool transposed;
  Fp8Scale b_scale;
  const void* bias;  // [N] of the output's dtype, or null
  void* out;
  Fp8Output output;
  int64_t columns;  // N, the stride of out
};
}  // namespace r1

#ifdef R1_BASELINE
// Codes in a unit of 32 bits: two where it is a pair of bf16, one where it is a float.
R1_DECLARE(int fp8_codes_per_unit())
// Codes [rows][depth] at a stride to numbers [rows][units], with zeros to whole units.
R1_DECLARE(void fp8_decode_rows(const uint8_t* codes, int64_t stride, int64_t rows, int64_t depth,
                                uint32_t* out))
// Rows m0 to m1 of one panel of kPanel columns from n on; packed has room for its whole depth, or
// for two blocks of it if there are at most kTileRows rows.
R1_DECLARE(void fp8_product_panel(const Fp8Product&, int64_t m0, int64_t m1, int64_t n,
                                  uint32_t* packed))
#endif
