// Products of FP8 matrices: codes become numbers in panels that stay in the cache, each block of 128
// of the reduction is summed from zero and promoted with its scales.
//
// One panel has 48 columns of the result as lanes. For a single row too: the codes of the weight are
// read once from memory, and a row's sums are made in the same order whatever its batch.
#include "cpu/fp8/product.h"

#include "cpu/fp8/panel.h"
#include "cpu/fp8/row.h"

namespace r1::R1_ISA {
namespace {
constexpr int64_t kFetched = 8192;  // codes of a row: those of a panel are 384 KiB at most
constexpr int64_t kPer = Fp8Unit::kPerUnit;
#ifdef __AMX_BF16__
constexpr int64_t kAhead = kBlock;  // codes: tiles wait until what they load has been stored
#else
constexpr int64_t kAhead = 0;  // the first cache has room for one block
#endif
constexpr int kVectors = kWidth == 16 || kPer == 1 ? 3 : 2;  // of lanes, summed at a time

#ifdef __AMX_BF16__
// The sums of one block, promoted: z[m][n] += Σ·a_scale[m][at]·sb[n].
void block_of_panel(int64_t rows, int64_t lanes, int64_t depth, const uint32_t* b,
                    const Fp8Product& f, int64_t m0, int64_t block, const float* const* a_scale,
                    const float* sb, float* z) {
  constexpr int NR = kPanel / kWidth;
  alignas(64) float sums[kTileRows * kPanel];
  const Left left{f.a + m0 * f.units + block * (kBlock / kPer), f.units, 1};
  gemm_panel<BF16>(rows, lanes, depth, left, b, sums, kPanel, false);
  const F factor[NR] = {load(sb), load(sb + kWidth), load(sb + 2 * kWidth)};
  for (int64_t m = 0; m < rows; ++m) {
    const F sa = splat(a_scale[m][block * f.a_scale.block]);
#pragma GCC unroll 3
    for (int n = 0; n < NR; ++n) {
      float* sum = z + m * kPanel + n * kWidth;
      // Scales alone may underflow.
      store(sum, load(sum) + load(sums + m * kPanel + n * kWidth) * sa * factor[n]);
    }
  }
}

#else
// The sums of one block, promoted: z[m][n] += Σ·a_scale[m][at]·sb[n], in the order of fp8_row.h. A
// function of its own keeps its sums in registers. Always one sum of one product: it is fused, or not,
// alike for every MR and NR, so that a row is the same bits in every batch.
template <int MR, int NR>
__attribute__((noinline)) void block_product(int64_t depth, Left left, const uint32_t* b,
                                             const float* const* a_scale, int64_t at,
                                             const float* sb, float* z) {
  F acc[MR][NR];
  const auto add_part = [&](int64_t first, F(&sums)[MR][NR]) __attribute__((always_inline)) {
    const Left at{left.a + first, left.row, kParts};
    const uint32_t* from = b + first * kPanel;
    if (kParts > 1 && depth == kBlock)
      products<Fp8Unit, MR, NR, kParts, kBlock / kParts>(0, at, from, sums);
    else products<Fp8Unit, MR, NR, kParts>((depth - first + kParts - 1) / kParts, at, from, sums);
  };
  add_part(0, acc);
  for (int64_t first = 1; first < least(depth, kParts); ++first) {
    F part[MR][NR];
    add_part(first, part);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 6
      for (int n = 0; n < NR; ++n) acc[m][n] = acc[m][n] + part[m][n];
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    const F sa = splat(a_scale[m][at]);
#pragma GCC unroll 6
    for (int n = 0; n < NR; ++n) {
      float* sum = z + m * kPanel + n * kWidth;
      // Scales alone may underflow.
      store(sum, load(sum) + acc[m][n] * sa * load(sb + n * kWidth));
    }
  }
}

template <int MR, int NR>
inline void block_rows(int64_t rows, int64_t depth, Left left, const uint32_t* b,
                       const float* const* a_scale, int64_t at, const float* sb, float* z) {
  if constexpr (MR > 1)
    if (rows < MR) return block_rows<MR - 1, NR>(rows, depth, left, b, a_scale, at, sb, z);
  block_product<MR, NR>(depth, left, b, a_scale, at, sb, z);
}

template <int NR, int MR = kWidth == 16 ? 8 : 4>
void block_strip(int64_t rows, int64_t depth, const uint32_t* b, const Fp8Product& f, int64_t m0,
                 int64_t block, const float* const* a_scale, const float* sb, float* z) {
  for (int64_t m = 0; m < rows; m += MR) {
    const Left left{f.a + (m0 + m) * f.units + block * (kBlock / kPer), f.units, 1};
    block_rows<MR, NR>(rows - m, depth, left, b, a_scale + m, block * f.a_scale.block, sb,
                       z + m * kPanel);
  }
}

void block_of_panel(int64_t rows, int64_t lanes, int64_t depth, const uint32_t* b,
                    const Fp8Product& f, int64_t m0, int64_t block, const float* const* a_scale,
                    const float* sb, float* z) {
  // Of few rows the sums wait for one another: then there are as many as registers hold.
  constexpr int kWide = kPanel / kWidth;
  if (kWide <= 6 && rows <= 2 && lanes > kPanel - kWidth)
    return block_strip<kWide, 2>(rows, depth, b, f, m0, block, a_scale, sb, z);
  for (int64_t n = 0; n < lanes; n += kWidth * kVectors) {
    if (lanes - n <= kWidth)
      block_strip<1>(rows, depth, b + n, f, m0, block, a_scale, sb + n, z + n);
    else if (kVectors == 3 && lanes - n <= 2 * kWidth)
      block_strip<2>(rows, depth, b + n, f, m0, block, a_scale, sb + n, z + n);
    else block_strip<kVectors>(rows, depth, b + n, f, m0, block, a_scale, sb + n, z + n);
  }
}
#endif

inline float element(const void* p, Fp8Output type, int64_t at) {
  if (type == Fp8Output::bf16) return bf16_to_float(static_cast<const uint16_t*>(p)[at]);
  if (type == Fp8Output::fp16) return static_cast<float>(static_cast<const _Float16*>(p)[at]);
  return static_cast<const float*>(p)[at];
}

void store_row(const Fp8Product& f, int64_t m, int64_t n, int64_t lanes, float* z) {
  if (f.bias)
    for (int64_t i = 0; i < lanes; ++i) z[i] += element(f.bias, f.output, n + i);
  const int64_t at = m * f.columns + n;
  if (f.output == Fp8Output::bf16) {
    auto* out = static_cast<uint16_t*>(f.out) + at;
    int64_t i = 0;
    for (; i + kWidth <= lanes; i += kWidth) store_bf16(out + i, load(z + i));
    for (; i < lanes; ++i) out[i] = float_to_bf16(z[i]);
  } else if (f.output == Fp8Output::fp16) {
    auto* out = static_cast<_Float16*>(f.out) + at;
    for (int64_t i = 0; i < lanes; ++i) out[i] = static_cast<_Float16>(z[i]);
  } else {
    auto* out = static_cast<float*>(f.out) + at;
    if (f.output == Fp8Output::add)
      for (int64_t i = 0; i < lanes; ++i) z[i] += out[i];
    memcpy(out, z, lanes * sizeof(float));
  }
}
}  // namespace

int fp8_codes_per_unit() { return kPer; }

void fp8_decode_rows(const uint8_t* codes, int64_t stride, int64_t rows, int64_t depth,
                     uint32_t* out) {
  const int64_t units = (depth + kPer - 1) / kPer;
  for (int64_t r = 0; r < rows; ++r, codes += stride, out += units)
    for (int64_t u = 0; u < units; u += kWidth) {
      const U some = left_units(PaddedCodes<kPer * kWidth>(codes + kPer * u, depth - kPer * u).p);
      if (u + kWidth <= units) store_as(out + u, some);
      else memcpy(out + u, &some, (units - u) * 4);
    }
}

void fp8_product_panel(const Fp8Product& f, int64_t m0, int64_t m1, int64_t n, uint32_t* packed) {
  alignas(64) float z[kTileRows * kPanel];
  alignas(64) float sb[kPanel] = {};
  const int64_t lanes = least(f.columns - n, kPanel);
#ifdef R1_ISA_IS_AVX2
  if (m1 - m0 == 1 && !f.transposed) {
    multiply_row(f, m0, n, lanes, z);
    return store_row(f, m0, n, lanes, z);
  }
#endif
  const float *a_scale[kTileRows], *b_scale[kPanel];
  for (int64_t i = 0; i < lanes; ++i) b_scale[i] = f.b_scale.of(n + i);
  const bool kept = m1 - m0 > kTileRows;  // for the next rows; else blocks take turns
  const auto units_of = [&](int64_t k) {
    return packed + (kept ? k : k % (kAhead + kBlock)) / kPer * kPanel;
  };
  const auto pack = [&](int64_t k) {
    if (k >= f.depth) return;
    const int64_t end = least(f.depth, k + kBlock);
    if (f.transposed) return pack_columns(f, n, k, end, units_of(k));
    if (k % kFetched == 0) fetch_rows(f, n, k, least(f.depth, k + kFetched));
    pack_rows(f, n, k, end, units_of(k));
  };
  for (int64_t m = m0; m < m1; m += kTileRows) {
    const int64_t rows = least(m1 - m, kTileRows);
    for (int64_t r = 0; r < rows; ++r) a_scale[r] = f.a_scale.of(m + r);
    memset(z, 0, rows * kPanel * sizeof(float));
    if (kAhead > 0 && m == m0) pack(0);
    for (int64_t k = 0; k < f.depth; k += kBlock) {
      const int64_t block = k / kBlock;
      if (m == m0) pack(k + kAhead);
      for (int64_t i = 0; i < lanes; ++i) sb[i] = b_scale[i][block * f.b_scale.block];
      block_of_panel(rows, lanes, (least(f.depth - k, kBlock) + kPer - 1) / kPer, units_of(k), f, m,
                     block, a_scale, sb, z);
    }
    for (int64_t r = 0; r < rows; ++r) store_row(f, m + r, n, lanes, z + r * kPanel);
  }
}
}  // namespace r1::R1_ISA
