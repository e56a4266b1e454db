// A tile of floats in the cache, 128 × 128, and its codes and scales in blocks of every shape.
#pragma once

#include "cpu/fp8.h"
#include "cpu/fp8_block.h"
#include "cpu/transpose.h"

namespace r1::R1_ISA {
// Rows and columns from `rows` and `columns` on, to whole vectors and squares, are zeros.
struct Fp8Tile {
  alignas(64) float v[kBlock][kBlock];
  int64_t rows, columns;
};

// What codes are multiplied with, and what makes them.
struct Fp8Factor {
  float scale, inverse;
};

static inline Fp8Factor fp8_factor(float largest, bool power_of_two) {
  float scale = largest / 448.0f;
  scale = scale > 0x1p-126f ? scale : 0x1p-126f;
  if (power_of_two) {
    uint32_t bits;
    memcpy(&bits, &scale, 4);
    bits = (bits + 0x7fffff) & 0x7f800000;
    memcpy(&scale, &bits, 4);
  }
  return {scale, 1.0f / scale};
}

static inline float largest_lane(F v) {
  float most = 0;
  for (int n = 0; n < kWidth; ++n) most = v[n] > most ? v[n] : most;
  return most;
}

static inline void encode_row(const float* row, int64_t columns, float inverse, uint8_t* out) {
  int64_t c = 0;
  for (; c + kWidth <= columns; c += kWidth) store_codes(out + c, encode(load(row + c), splat(inverse)));
  if (c == columns) return;
  uint8_t rest[kWidth];
  store_codes(rest, encode(load(row + c), splat(inverse)));
  memcpy(out + c, rest, columns - c);
}

// Blocks of 1 × 128: the codes of row r at data + r·stride, its scale at scale[r·step].
static inline void quantize_rows(const Fp8Tile& tile, bool power_of_two, uint8_t* data, int64_t stride,
                          float* scale, int64_t step) {
  for (int64_t r = 0; r < tile.rows; ++r) {
    F most{};
    for (int64_t c = 0; c < tile.columns; c += kWidth)
      most = max(most, magnitude(load(tile.v[r] + c)));
    const Fp8Factor factor = fp8_factor(largest_lane(most), power_of_two);
    scale[r * step] = factor.scale;
    encode_row(tile.v[r], tile.columns, factor.inverse, data + r * stride);
  }
}

// One block, whatever its size.
static inline void quantize_square(const Fp8Tile& tile, bool power_of_two, uint8_t* data, int64_t stride,
                            float* scale) {
  F most{};
  for (int64_t r = 0; r < tile.rows; ++r)
    for (int64_t c = 0; c < tile.columns; c += kWidth)
      most = max(most, magnitude(load(tile.v[r] + c)));
  const Fp8Factor factor = fp8_factor(largest_lane(most), power_of_two);
  *scale = factor.scale;
  for (int64_t r = 0; r < tile.rows; ++r)
    encode_row(tile.v[r], tile.columns, factor.inverse, data + r * stride);
}

// Factors of kWidth columns from c on; those beyond the tile's are of nothing.
static inline F column_factors(const Fp8Tile& tile, int64_t c, bool power_of_two, float* scale) {
  F most{}, inverse{};
  for (int64_t r = 0; r < tile.rows; ++r) most = max(most, magnitude(load(tile.v[r] + c)));
  for (int n = 0; n < kWidth; ++n) {
    const Fp8Factor factor = fp8_factor(most[n], power_of_two);
    inverse[n] = factor.inverse;
    scale[n] = factor.scale;
  }
  return inverse;
}

// Blocks of 128 × 1: the scale of column c at scale[c].
static inline void quantize_columns(const Fp8Tile& tile, bool power_of_two, uint8_t* data, int64_t stride,
                             float* scale) {
  for (int64_t c = 0; c < tile.columns; c += kWidth) {
    float scales[kWidth];
    const F inverse = column_factors(tile, c, power_of_two, scales);
    const int64_t count = tile.columns - c < kWidth ? tile.columns - c : kWidth;
    memcpy(scale + c, scales, count * sizeof(float));
    for (int64_t r = 0; r < tile.rows; ++r) {
      uint8_t codes[kWidth];
      store_codes(codes, encode(load(tile.v[r] + c), inverse));
      memcpy(data + r * stride + c, codes, count);
    }
  }
}

// The same, transposed: 128 codes of column c at data + c·stride, its scale at scale[c·step].
static inline void quantize_transposed(const Fp8Tile& tile, bool power_of_two, uint8_t* data,
                                int64_t stride, float* scale, int64_t step) {
  for (int64_t c = 0; c < tile.columns; c += kWidth) {
    float scales[kWidth];
    const F inverse = column_factors(tile, c, power_of_two, scales);
    const int64_t count = tile.columns - c < kWidth ? tile.columns - c : kWidth;
    for (int64_t n = 0; n < count; ++n) scale[(c + n) * step] = scales[n];
    for (int64_t r = 0; r < kBlock; r += 4 * kWidth) {
      F square[kWidth];  // four codes of a column in each lane
      for (int i = 0; i < kWidth; ++i) {
        U four{};
        for (int j = 0; j < 4 && r + 4 * i < tile.rows; ++j)
          four |= encode(load(tile.v[r + 4 * i + j] + c), inverse) << (8 * j);
        square[i] = (F)four;
      }
      transpose(square);
      for (int64_t n = 0; n < count; ++n) store((float*)(data + (c + n) * stride + r), square[n]);
    }
  }
}
}  // namespace r1::R1_ISA
