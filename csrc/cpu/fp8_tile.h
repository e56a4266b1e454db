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

// What codes are multiplied with, and what makes them, of kWidth blocks: divisions in a row of one
// block after another took half of the time.
struct Fp8Factors {
  alignas(64) float scale[kWidth], inverse[kWidth];

  Fp8Factors(F largest, bool power_of_two) {
    F s = max(largest / splat(448.0f), splat(0x1p-126f));
    if (power_of_two) s = (F)(((U)s + 0x7fffff) & 0x7f800000);
    store(scale, s);
    store(inverse, splat(1.0f) / s);
  }
};

static inline void encode_row(const float* row, int64_t columns, float inverse, uint8_t* out) {
  int64_t c = 0;
  for (; c + kWidth <= columns; c += kWidth) store_codes(out + c, encode(load(row + c), splat(inverse)));
  if (c == columns) return;
  uint8_t rest[kWidth];
  store_codes(rest, encode(load(row + c), splat(inverse)));
  memcpy(out + c, rest, columns - c);
}

static inline F largest_of_row(const Fp8Tile& tile, int64_t r) {
  F most{};
  for (int64_t c = 0; c < tile.columns; c += kWidth) most = max(most, magnitude(load(tile.v[r] + c)));
  return most;
}

// Blocks of 1 × 128: the codes of row r at data + r·stride, its scale at scale[r·step].
static inline void quantize_rows(const Fp8Tile& tile, bool power_of_two, uint8_t* data,
                                 int64_t stride, float* scale, int64_t step) {
  for (int64_t first = 0; first < tile.rows; first += kWidth) {
    const int64_t count = tile.rows - first < kWidth ? tile.rows - first : kWidth;
    F most[kWidth] = {};
    for (int64_t i = 0; i < count; ++i) most[i] = largest_of_row(tile, first + i);
    transpose(most);
    for (int i = 1; i < kWidth; ++i) most[0] = max(most[0], most[i]);
    const Fp8Factors factor(most[0], power_of_two);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t r = first + i;
      scale[r * step] = factor.scale[i];
      encode_row(tile.v[r], tile.columns, factor.inverse[i], data + r * stride);
    }
  }
}

// One block, whatever its size.
static inline void quantize_square(const Fp8Tile& tile, bool power_of_two, uint8_t* data, int64_t stride,
                            float* scale) {
  F most{};
  for (int64_t r = 0; r < tile.rows; ++r) most = max(most, largest_of_row(tile, r));
  float largest = 0;
  for (int n = 0; n < kWidth; ++n) largest = most[n] > largest ? most[n] : largest;
  const Fp8Factors factor(splat(largest), power_of_two);
  *scale = factor.scale[0];
  for (int64_t r = 0; r < tile.rows; ++r)
    encode_row(tile.v[r], tile.columns, factor.inverse[0], data + r * stride);
}

// Factors of kWidth columns from c on; those beyond the tile's are of nothing.
static inline Fp8Factors column_factors(const Fp8Tile& tile, int64_t c, bool power_of_two) {
  F most{};
  for (int64_t r = 0; r < tile.rows; ++r) most = max(most, magnitude(load(tile.v[r] + c)));
  return {most, power_of_two};
}

// Blocks of 128 × 1: the scale of column c at scale[c].
static inline void quantize_columns(const Fp8Tile& tile, bool power_of_two, uint8_t* data, int64_t stride,
                             float* scale) {
  for (int64_t c = 0; c < tile.columns; c += kWidth) {
    const Fp8Factors factor = column_factors(tile, c, power_of_two);
    const F inverse = load(factor.inverse);
    const int64_t count = tile.columns - c < kWidth ? tile.columns - c : kWidth;
    memcpy(scale + c, factor.scale, count * sizeof(float));
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
    const Fp8Factors factor = column_factors(tile, c, power_of_two);
    const F inverse = load(factor.inverse);
    const int64_t count = tile.columns - c < kWidth ? tile.columns - c : kWidth;
    for (int64_t n = 0; n < count; ++n) scale[(c + n) * step] = factor.scale[n];
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
