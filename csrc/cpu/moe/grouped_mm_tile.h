// Products of one expert's rows, from operands packed for gemm.h to rows as tensors have them.
//
// Either the rows are the lanes and the weight [N][K] is read in place, or its columns are the lanes
// and the rows are read in place. An element of the result is the same bits both ways: it depends on
// the length of the reduction alone.
#pragma once

#include "cpu/common/gemm.h"
#include "cpu/moe/grouped_mm.h"
#include "cpu/common/transpose.h"

namespace r1 {
static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t units_of(int64_t elements, int64_t per_unit) {
  return (elements + per_unit - 1) / per_unit;
}
}  // namespace r1

namespace r1::R1_ISA {
template <class V, class E>
static inline V load_some(const E* p, int64_t count) {
  if (count >= kWidth) return load_as<V>(p);
  V v{};
  memcpy(&v, p, count * sizeof(E));
  return v;
}

template <class T>
static inline void store_some(typename T::Element* p, F v, int64_t count) {
  if (count >= kWidth) return T::store(p, v);
  typename T::Element all[kWidth];
  T::store(all, v);
  memcpy(p, all, count * sizeof(*p));
}

// Rows as lanes, [unit][kPanel]; row(i) is null where there is nothing but zeros.
template <class Row>
static void pack_lanes(int64_t lanes, int64_t units, const Row& row, uint32_t* out) {
  for (int64_t n = 0; n < lanes; n += kWidth) {
    const uint32_t* from[kWidth];
    for (int64_t i = 0; i < kWidth; ++i) from[i] = n + i < lanes ? row(n + i) : nullptr;
    for (int64_t k = 0; k < units; k += kWidth) {
      const int64_t count = at_most(units - k, kWidth);
      F square[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i)
        square[i] = from[i] ? (F)load_some<U>(from[i] + k, count) : F{};
      transpose(square);
      for (int i = 0; i < count; ++i) store((float*)out + (k + i) * kPanel + n, square[i]);
    }
  }
}

// Columns as lanes, [unit of rows][kPanel]; row(i) points to the first of them, or is null.
template <class T, class Row>
static void pack_pairs(int64_t rows, int64_t lanes, const Row& row, uint32_t* out) {
  using V = typename T::Elements;
  for (int64_t i = 0; i < rows; i += T::kPerUnit, out += kPanel) {
    const auto* low = row(i);
    const auto* high = T::kPerUnit == 2 && i + 1 < rows ? row(i + 1) : nullptr;
    for (int64_t n = 0; n < lanes; n += kWidth)
      store_as(out + n, T::pair(low ? load_some<V>(low + n, lanes - n) : V{},
                                high ? load_some<V>(high + n, lanes - n) : V{}));
  }
}

// A tile of sums [rows][kPanel] as rows.
template <class T>
static void store_tile(const float* z, int64_t rows, int64_t lanes, typename T::Element* out,
                       int64_t stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < lanes; n += kWidth)
      store_some<T>(out + r * stride + n, load(z + r * kPanel + n), lanes - n);
}

// A tile of sums [columns][kPanel] whose lanes are rows, at row(lane); z has room for whole squares.
template <class T, class Row>
static void store_lanes(const float* z, int64_t columns, int64_t lanes, const Row& row) {
  for (int64_t n = 0; n < lanes; n += kWidth)
    for (int64_t c = 0; c < columns; c += kWidth) {
      F square[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) square[i] = load(z + (c + i) * kPanel + n);
      transpose(square);
      for (int64_t i = 0; i < at_most(lanes - n, kWidth); ++i)
        store_some<T>(row(n + i) + c, square[i], columns - c);
    }
}

// out[rows][c0 to c1] = rows·weightᵀ: weight [N][units] in place, rows packed by pack_lanes.
template <class T>
static void rows_as_lanes(int64_t rows, int64_t units, const uint32_t* packed,
                          const uint32_t* weight, int64_t c0, int64_t c1, typename T::Element* out,
                          int64_t stride) {
  alignas(64) float z[kTile * kPanel];
  for (int64_t c = c0; c < c1; c += kTile) {
    const int64_t columns = at_most(c1 - c, kTile);
    for (int64_t r = 0; r < rows; r += kPanel) {
      const int64_t lanes = at_most(rows - r, kPanel), ahead = r == 0 ? kTile * units : 0;
      gemm_panel<T>(columns, lanes, units, Left{weight + c * units, units, 1, ahead},
                    packed + r * units, z, kPanel, false);
      store_lanes<T>(z, columns, lanes, [&](int64_t i) { return out + (r + i) * stride + c; });
    }
  }
}

// Tiles of rows·weight: left [rows][units] and weight [depth][columns], of which the columns from c0
// to c1; use(row, rows, column, lanes, sums) gets each. packed has room for one panel.
template <class T, class Use>
static void columns_as_lanes(int64_t rows, const uint32_t* left, const typename T::Element* weight,
                             int64_t depth, int64_t columns, int64_t c0, int64_t c1,
                             uint32_t* packed, const Use& use) {
  alignas(64) float z[kTile * kPanel];
  const int64_t units = units_of(depth, T::kPerUnit);
  for (int64_t c = c0; c < c1; c += kPanel) {
    const int64_t lanes = at_most(c1 - c, kPanel);
    pack_pairs<T>(depth, lanes, [&](int64_t k) { return weight + k * columns + c; }, packed);
    for (int64_t r = 0; r < rows; r += kTile) {
      const int64_t count = at_most(rows - r, kTile);
      gemm_panel<T>(count, lanes, units, Left{left + r * units, units, 1}, packed, z, kPanel,
                    false);
      use(r, count, c, lanes, z);
    }
  }
}

// out[m0 to m1][columns] = Σ left[row][m]·right[row], rows in their order. left(row) points to its
// column 0 or is null; right is packed by pack_pairs, panel after panel; packed has room for one.
template <class T, class Row>
static void sum_of_rows(int64_t rows, const Row& left, int64_t m0, int64_t m1,
                        const uint32_t* right, int64_t columns, uint32_t* packed,
                        typename T::Element* out) {
  alignas(64) float z[kPanel * kPanel];
  const int64_t units = units_of(rows, T::kPerUnit);
  for (int64_t m = m0; m < m1; m += kPanel) {
    const int64_t count = at_most(m1 - m, kPanel);
    pack_pairs<T>(rows, count, [&](int64_t i) {
      const auto* row = left(i);
      return row ? row + m : nullptr;
    }, packed);
    turn<T>(packed, units);
    for (int64_t n = 0; n < columns; n += kPanel) {
      const int64_t lanes = at_most(columns - n, kPanel);
      gemm_panel<T>(count, lanes, units, Left{packed, 1, kPanel}, right + n * units, z, kPanel,
                    false);
      store_tile<T>(z, count, lanes, out + m * columns + n, columns);
    }
  }
}
}  // namespace r1::R1_ISA
