// A tile of floats in the cache, 128 × 128, and its codes and scales in blocks of every shape.
#pragma once

#include <type_traits>

#include "cpu/fp8/fp8.h"
#include "cpu/fp8/block.h"
#include "cpu/common/gemm.h"
#include "cpu/common/transpose.h"

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

  Fp8Factors(U largest, bool power_of_two) {  // bits of magnitudes
    F s = max((F)largest / splat(448.0f), splat(0x1p-126f));
    if (power_of_two) s = (F)(((U)s + 0x7fffff) & 0x7f800000);
    store(scale, s);
    store(inverse, splat(1.0f) / s);
  }
};

// `columns` of a row; what follows up to a multiple of 4·kWidth can be read.
template <class T, bool numbers>
static inline void encode_row(const typename T::Element* row, int64_t columns, F inverse, uint8_t* out) {
  constexpr int kStep = 4 * kWidth;
  for (int64_t c = 0; c < columns; c += kStep) {
    const auto load = [&](int i) { return T::load(row + c + i); };
    uint8_t rest[kStep];
    const bool whole = c + kStep <= columns;
    store_encoded<numbers>(whole ? out + c : rest, inverse, load);
    if (!whole) memcpy(out + c, rest, columns - c);
  }
}

static inline U largest_of_row(const Fp8Tile& tile, int64_t r) {
  U most{};
  for (int64_t c = 0; c < tile.columns; c += kWidth) most = largest(most, number_magnitude(load(tile.v[r] + c)));
  return most;
}

// Blocks of 1 × 128: the codes of row r, from row(r) on, at data + r·stride, its scale at
// scale[r·step]. What follows `columns` is zero to a whole vector, and can be read to four.
template <class T, class Row>
static inline void quantize_rows(int64_t rows, int64_t columns, const Row& row, bool power_of_two,
                                 uint8_t* data, int64_t stride, float* scale, int64_t step) {
  for (int64_t first = 0; first < rows; first += kWidth) {
    const int64_t count = rows - first < kWidth ? rows - first : kWidth;
    const typename T::Element* from[kWidth];
    for (int64_t i = 0; i < count; ++i) from[i] = row(first + i);
    const auto largest_of = [&](const auto& bits) {
      F of_row[kWidth] = {};
      for (int64_t i = 0; i < count; ++i) {
        U most{};
        for (int64_t c = 0; c < columns; c += kWidth) most = largest(most, bits(T::load(from[i] + c)));
        of_row[i] = (F)most;
      }
      transpose(of_row);
      U most{};
      for (int i = 0; i < kWidth; ++i) most = largest(most, (U)of_row[i]);
      return most;
    };
    U most = largest_of(magnitude);
    const bool numbers = are_numbers(most);
    if (!numbers) most = largest_of(number_magnitude);
    const Fp8Factors factor(most, power_of_two);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t r = first + i;
      const F inverse = splat(factor.inverse[i]);
      scale[r * step] = factor.scale[i];
      if (numbers) encode_row<T, true>(from[i], columns, inverse, data + r * stride);
      else encode_row<T, false>(from[i], columns, inverse, data + r * stride);
    }
  }
}

static inline void quantize_rows(const Fp8Tile& tile, bool power_of_two, uint8_t* data,
                                 int64_t stride, float* scale, int64_t step) {
  quantize_rows<F32>(tile.rows, tile.columns, [&](int64_t r) { return tile.v[r]; }, power_of_two, data,
                     stride, scale, step);
}

// One block, whatever its size.
static inline void quantize_square(const Fp8Tile& tile, bool power_of_two, uint8_t* data, int64_t stride,
                            float* scale) {
  U most{};
  for (int64_t r = 0; r < tile.rows; ++r) most = largest(most, largest_of_row(tile, r));
  uint32_t bits = 0;
  for (int n = 0; n < kWidth; ++n) bits = most[n] > bits ? most[n] : bits;
  const Fp8Factors factor(splat_bits(bits), power_of_two);
  *scale = factor.scale[0];
  for (int64_t r = 0; r < tile.rows; ++r)
    encode_row<F32, false>(tile.v[r], tile.columns, splat(factor.inverse[0]), data + r * stride);
}

// kWidth columns of a tile, from c on.
struct Fp8Columns {
  const Fp8Tile& tile;
  int64_t c;

  template <class Bits>
  U largest_of(const Bits& bits) const {
    U most{};
    for (int64_t r = 0; r < tile.rows; ++r) most = largest(most, bits(load(tile.v[r] + c)));
    return most;
  }

  // Calls body(factors, whether all are numbers).
  template <class Body>
  void quantize(bool power_of_two, const Body& body) const {
    const U most = largest_of(magnitude);
    if (are_numbers(most)) body(Fp8Factors(most, power_of_two), std::true_type());
    else body(Fp8Factors(largest_of(number_magnitude), power_of_two), std::false_type());
  }
};

// Blocks of 128 × 1: the scale of column c at scale[c].
static inline void quantize_columns(const Fp8Tile& tile, bool power_of_two, uint8_t* data, int64_t stride,
                             float* scale) {
  for (int64_t c = 0; c < tile.columns; c += kWidth)
    Fp8Columns{tile, c}.quantize(power_of_two, [&](const Fp8Factors& factor, auto numbers) {
      const F inverse = load(factor.inverse);
      const int64_t count = tile.columns - c < kWidth ? tile.columns - c : kWidth;
      memcpy(scale + c, factor.scale, count * sizeof(float));
      for (int64_t r = 0; r < tile.rows; ++r) {
        uint8_t codes[kWidth];
        store_codes(codes, encode<numbers.value>(load(tile.v[r] + c), inverse));
        memcpy(data + r * stride + c, codes, count);
      }
    });
}

// The same, transposed: 128 codes of column c at data + c·stride, its scale at scale[c·step].
static inline void quantize_transposed(const Fp8Tile& tile, bool power_of_two, uint8_t* data,
                                int64_t stride, float* scale, int64_t step) {
  for (int64_t c = 0; c < tile.columns; c += kWidth)
    Fp8Columns{tile, c}.quantize(power_of_two, [&](const Fp8Factors& factor, auto numbers) {
      const F inverse = load(factor.inverse);
      const int64_t count = tile.columns - c < kWidth ? tile.columns - c : kWidth;
      for (int64_t n = 0; n < count; ++n) scale[(c + n) * step] = factor.scale[n];
      for (int64_t r = 0; r < kBlock; r += 4 * kWidth) {
        F square[kWidth];  // four codes of a column in each lane
        for (int i = 0; i < kWidth; ++i) {
          U four{};
          for (int j = 0; j < 4 && r + 4 * i < tile.rows; ++j)
            four |= encode<numbers.value>(load(tile.v[r + 4 * i + j] + c), inverse) << (8 * j);
          square[i] = (F)four;
        }
        transpose(square);
        for (int64_t n = 0; n < count; ++n) store((float*)(data + (c + n) * stride + r), square[n]);
      }
    });
}
}  // namespace r1::R1_ISA
