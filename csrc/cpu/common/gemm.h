// A small matrix product for one core, with operands where the caller has them.
//
//   c[m][n] (+)= Σ_k a[m][k]·b[k][n]        c in fp32
//
// The reduction is counted in units of 32 bits: one fp32 (F32) or two neighbouring bf16 (BF16).
// One operand (a) is read in place, a unit at a time, at any strides; the other (b) is packed in
// panels of kPanel lanes, [panel][k][lane]. Every element of c sums its products slice by slice of k,
// each from zero, whatever m, n or the number of threads: a row's result does not depend on its
// neighbours, and rounding grows with the slices rather than with k.
#pragma once

#include "cpu/common/gemm_operands.h"
#include "cpu/common/gemm_tiles.h"

namespace r1::R1_ISA {
static inline uint32_t load_unit(const uint32_t* p) {
  uint32_t u;
  memcpy(&u, p, 4);  // bf16 rows of odd length are not aligned to a unit
  return u;
}

// acc[m][n] = Σ_k a[m][k]·b[k][n], from zero, of MR rows and NR vectors of lanes; of b every step-th k.
// A `count` that is known, in place of depth, saves the guess where a short loop ends.
template <class T, int MR, int NR, int step = 1, int count = 0>
static inline void products(int64_t depth, Left left, const uint32_t* b, F (&acc)[MR][NR]) {
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 6
    for (int n = 0; n < NR; ++n) acc[m][n] = F{};
  const auto add = [&](int64_t k) __attribute__((always_inline)) {
    U bk[NR];
#pragma GCC unroll 6
    for (int n = 0; n < NR; ++n) bk[n] = load_as<U>(b + k * step * kPanel + n * kWidth);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const U am = splat_bits(load_unit(left.a + m * left.row + k * left.unit));
#pragma GCC unroll 6
      for (int n = 0; n < NR; ++n) acc[m][n] = T::dot(acc[m][n], am, bk[n]);
    }
  };
  if constexpr (count > 0) {
#pragma GCC unroll 8
    for (int64_t k = 0; k < count; ++k) add(k);
  } else {
    for (int64_t k = 0; k < depth; ++k) add(k);
  }
}

template <class T, int MR, int NR>
static inline void micro(int64_t depth, Left left, const uint32_t* b, float* c, int64_t ldc,
                         bool accumulate) {
  F acc[MR][NR];
  products<T, MR, NR>(depth, left, b, acc);
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < NR; ++n) {
      float* sum = c + m * ldc + n * kWidth;
      store(sum, accumulate ? load(sum) + acc[m][n] : acc[m][n]);
    }
}

// As many rows as are left, at most MR.
template <class T, int MR, int NR>
static inline void micro_rows(int64_t rows, int64_t depth, Left left, const uint32_t* b, float* c,
                              int64_t ldc, bool accumulate) {
  if constexpr (MR > 1)
    if (rows < MR) return micro_rows<T, MR - 1, NR>(rows, depth, left, b, c, ldc, accumulate);
  micro<T, MR, NR>(depth, left, b, c, ldc, accumulate);
}

// Fetches the sums that come next, from wherever they are, while the products at hand are made.
template <int MR, int NR>
static inline void prefetch(const float* c, int64_t ldc) {
  for (int m = 0; m < MR; ++m)
    for (int n = 0; n < NR; ++n) __builtin_prefetch(c + m * ldc + n * kWidth, 1);
}

// Rows and vectors of lanes whose sums are in registers at one time: of 16 registers of AVX2 all for
// fp32, while bf16 needs some to take its units apart.
constexpr int kMostRows = kWidth == 16 ? 8 : 4;
template <class T>
constexpr int kMostVectors = kWidth == 16 || (kWidth == 8 && T::kPerUnit == 1) ? 3 : 2;

// NR vectors of lanes of one slice of the reduction.
template <class T, int NR>
static inline void gemm_strip(int64_t rows, int64_t depth, Left left, const uint32_t* b, float* c,
                              int64_t ldc, bool accumulate, bool fetch) {
  constexpr int MR = kMostRows;
  for (int64_t m = 0; m < rows; m += MR) {
    const Left at{left.a + m * left.row, left.row, left.unit};
    for (int64_t r = m; left.ahead && r < m + MR && r < rows; ++r)
      for (int64_t k = 0; k < depth; k += 16)
        __builtin_prefetch(left.a + r * left.row + k * left.unit + left.ahead, 0, 2);
    if (fetch) prefetch<MR, NR>(c + (m + MR) * ldc, ldc);
    micro_rows<T, MR, NR>(rows - m, depth, at, b, c + m * ldc, ldc, accumulate);
  }
}

// One panel: c[rows][lanes], where lanes is rounded up to whole vectors.
template <class T>
static void gemm_panel(int64_t rows, int64_t lanes, int64_t depth, Left left, const uint32_t* b,
                       float* c, int64_t ldc, bool accumulate) {
#ifdef __AMX_BF16__
  if constexpr (T::kPerUnit == 2)
    return gemm_tiles(rows, lanes, depth, left, b, c, ldc, accumulate);
#endif
  constexpr int NR = kMostVectors<T>;
  constexpr int64_t kDepth = 160;  // units: a slice of a panel is 30 KiB, about the first cache
  const int64_t slices = depth > 0 ? (depth + kDepth - 1) / kDepth : 1;
  const int64_t slice = depth > 0 ? (depth + slices - 1) / slices : 1;  // of equal length
  for (int64_t k0 = 0; k0 < depth || k0 == 0; k0 += slice) {
    const int64_t d = depth - k0 < slice ? depth - k0 : slice;
    const bool add = accumulate || k0 > 0, fetch = accumulate && k0 == 0;
    const Left at{left.a + k0 * left.unit, left.row, left.unit, left.ahead};
    for (int64_t n = 0; n < lanes; n += kWidth * NR) {
      const uint32_t* bn = b + k0 * kPanel + n;
      if (lanes - n <= kWidth)
        gemm_strip<T, 1>(rows, d, at, bn, c + n, ldc, add, false);
      else if (NR == 3 && lanes - n <= 2 * kWidth)
        gemm_strip<T, 2>(rows, d, at, bn, c + n, ldc, add, fetch);
      else
        gemm_strip<T, NR>(rows, d, at, bn, c + n, ldc, add, fetch);
    }
  }
}

// All panels of a right operand with `lanes` columns; c's rows are padded to whole panels.
template <class T>
static void gemm(int64_t rows, int64_t lanes, int64_t depth, Left left, const uint32_t* b, float* c,
                 int64_t ldc, bool accumulate) {
  for (int64_t n = 0; n < lanes; n += kPanel)
    gemm_panel<T>(rows, lanes - n < kPanel ? lanes - n : kPanel, depth, left,
                  b + n * depth, c + n, ldc, accumulate);
}
}  // namespace r1::R1_ISA
