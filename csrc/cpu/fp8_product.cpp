// Products of FP8 matrices: codes become bf16 in panels that stay in the cache, each block of 128 of
// the reduction is summed from zero and promoted with its scales.
//
// One panel has 48 columns of the result as lanes. For a single row too: the codes of the weight are
// read once from memory, and a row's sums are made in the same order whatever its batch.
#include "cpu/fp8_product.h"

#include "cpu/fp8.h"
#include "cpu/gemm.h"
#include "cpu/transpose.h"

namespace r1::R1_ISA {
namespace {
constexpr int64_t kFetched = 8192;  // codes of a row: those of a panel are 384 KiB at most

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Up to 2·kWidth codes as pairs; what is beyond is zero.
inline U pairs_of(const uint8_t* p, int64_t count) {
  if (count >= 2 * kWidth) return decode_pairs(p);
  uint8_t some[2 * kWidth] = {};
  if (count > 0) memcpy(some, p, count);
  return decode_pairs(some);
}

#ifdef __AVX512VBMI__
// 16 codes of each of 16 rows, row(i), four of them to a lane: quarter q has the codes from 4·q on.
template <class Row>
inline void fours_of(const Row& row, __m512i (&quarter)[4]) {
  __m512i v[4];  // rows i, 4 + i, 8 + i and 12 + i
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_castsi128_si512(row(i));
#pragma GCC unroll 3
    for (int part = 1; part < 4; ++part)
      v[i] = _mm512_mask_broadcast_i32x4(v[i], 0xf << 4 * part, row(4 * part + i));
  }
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpacklo_epi32(v[2], v[3]);
  const __m512i c = _mm512_unpackhi_epi32(v[0], v[1]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  quarter[0] = _mm512_unpacklo_epi64(a, b), quarter[1] = _mm512_unpackhi_epi64(a, b);
  quarter[2] = _mm512_unpacklo_epi64(c, d), quarter[3] = _mm512_unpackhi_epi64(c, d);
}

// Rows of b as lanes: [unit][kPanel] of the codes k0 to k1, which are transposed before they grow.
void pack_rows(const Fp8Product& f, int64_t n0, int64_t k0, int64_t k1, uint32_t* out) {
  const int64_t lanes = least(f.columns - n0, kPanel), units = (k1 - k0 + 1) / 2;
  for (int64_t n = 0; n < lanes; n += kWidth)
    for (int64_t k = k0; k < k1; k += kWidth) {
      const uint8_t* codes = f.b + (n0 + n) * f.stride + k;
      __m512i quarter[4];
      if (lanes - n >= kWidth && k1 - k >= kWidth) {
        fours_of([&](int i) { return load_as<__m128i>(codes + i * f.stride); }, quarter);
      } else {
        const __mmask16 some = k1 - k >= kWidth ? 0xffff : __mmask16((1 << (k1 - k)) - 1);
        const auto row = [&](int i) {
          return _mm_maskz_loadu_epi8(i < lanes - n ? some : 0, codes + i * f.stride);
        };
        fours_of(row, quarter);
      }
      const int64_t unit = (k - k0) / 2;
      uint32_t* to = out + unit * kPanel + n;
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        U one, two;
        decode_fours(quarter[q], one, two);
        if (unit + 2 * q < units) store_as(to + 2 * q * kPanel, one);
        if (unit + 2 * q + 1 < units) store_as(to + (2 * q + 1) * kPanel, two);
      }
    }
}
#else
// Rows of b as lanes: [unit][kPanel] of the codes k0 to k1.
void pack_rows(const Fp8Product& f, int64_t n0, int64_t k0, int64_t k1, uint32_t* out) {
  const int64_t lanes = least(f.columns - n0, kPanel);
  for (int64_t n = 0; n < lanes; n += kWidth)
    for (int64_t k = k0; k < k1; k += 2 * kWidth) {
      F square[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i)
        square[i] = n + i < lanes ? (F)pairs_of(f.b + (n0 + n + i) * f.stride + k, k1 - k) : F{};
      transpose(square);
      const int64_t units = least((k1 - k + 1) / 2, kWidth);
      for (int64_t u = 0; u < units; ++u) store((float*)out + ((k - k0) / 2 + u) * kPanel + n, square[u]);
    }
}

#endif

// Reads the codes k0 to k1 of a panel once, row by row, which memory answers several times as fast as
// the short pieces of many rows that packing asks for; they stay in the second cache until then.
void fetch_rows(const Fp8Product& f, int64_t n0, int64_t k0, int64_t k1) {
  const int64_t lanes = least(f.columns - n0, kPanel);
  for (int64_t n = 0; n < lanes; ++n)
    for (int64_t k = k0; k < k1; k += 64) {
      const uint8_t code = f.b[(n0 + n) * f.stride + k];
      asm volatile("" : : "r"(code));  // read, though nobody needs it
    }
}

inline U some_codes(const uint8_t* p, int64_t count) {
  if (count >= kWidth) return load_codes(p);
  uint8_t some[kWidth] = {};
  memcpy(some, p, count);
  return load_codes(some);
}

// Columns of b as lanes: two rows of the reduction make a unit.
void pack_columns(const Fp8Product& f, int64_t n0, int64_t k0, int64_t k1, uint32_t* out) {
  const int64_t lanes = least(f.columns - n0, kPanel);
  for (int64_t k = k0; k < k1; k += 2, out += kPanel) {
    const uint8_t* row = f.b + k * f.stride + n0;
    for (int64_t n = 0; n < lanes; n += kWidth) {
      U unit = (U)decode(some_codes(row + n, lanes - n)) >> 16;
      if (k + 1 < k1) unit |= (U)decode(some_codes(row + f.stride + n, lanes - n));
      store_as(out + n, unit);
    }
  }
}

// The sums of one block, promoted: z[m][n] += Σ·a_scale[m][at]·sb[n]. A function of its own keeps its
// sums in registers. Always one sum of one product: it is fused, or not, alike for every MR and NR, so
// that a row is the same bits in every batch.
template <int MR, int NR>
__attribute__((noinline)) void block_product(int64_t depth, Left left, const uint32_t* b,
                                             const float* const* a_scale, int64_t at,
                                             const float* sb, float* z) {
  F acc[MR][NR];
  products<BF16, MR, NR>(depth, left, b, acc);
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    const F sa = splat(a_scale[m][at]);
#pragma GCC unroll 4
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

template <int NR>
void block_strip(int64_t rows, int64_t depth, const uint32_t* b, const Fp8Product& f, int64_t m0,
                 int64_t block, const float* const* a_scale, const float* sb, float* z) {
  constexpr int MR = kWidth == 16 ? 8 : 4;
  for (int64_t m = 0; m < rows; m += MR) {
    const Left left{f.a + (m0 + m) * f.units + block * kBlockUnits, f.units, 1};
    block_rows<MR, NR>(rows - m, depth, left, b, a_scale + m, block * f.a_scale.block, sb,
                       z + m * kPanel);
  }
}

void block_of_panel(int64_t rows, int64_t lanes, int64_t depth, const uint32_t* b,
                    const Fp8Product& f, int64_t m0, int64_t block, const float* const* a_scale,
                    const float* sb, float* z) {
  constexpr int NR = kWidth == 16 ? 3 : 2;
  for (int64_t n = 0; n < lanes; n += kWidth * NR) {
    if (lanes - n <= kWidth)
      block_strip<1>(rows, depth, b + n, f, m0, block, a_scale, sb + n, z + n);
    else if (NR == 3 && lanes - n <= 2 * kWidth)
      block_strip<2>(rows, depth, b + n, f, m0, block, a_scale, sb + n, z + n);
    else block_strip<NR>(rows, depth, b + n, f, m0, block, a_scale, sb + n, z + n);
  }
}

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

void fp8_decode_rows(const uint8_t* codes, int64_t stride, int64_t rows, int64_t depth,
                     uint32_t* out) {
  const int64_t units = (depth + 1) / 2;
  for (int64_t r = 0; r < rows; ++r, codes += stride, out += units)
    for (int64_t u = 0; u < units; u += kWidth) {
      const U pairs = pairs_of(codes + 2 * u, depth - 2 * u);
      if (u + kWidth <= units) store_as(out + u, pairs);
      else memcpy(out + u, &pairs, (units - u) * 4);
    }
}

void fp8_product_panel(const Fp8Product& f, int64_t m0, int64_t m1, int64_t n, uint32_t* packed) {
  alignas(64) float z[kTileRows * kPanel];
  alignas(64) float sb[kPanel] = {};
  const int64_t lanes = least(f.columns - n, kPanel);
  const float *a_scale[kTileRows], *b_scale[kPanel];
  for (int64_t i = 0; i < lanes; ++i) b_scale[i] = f.b_scale.of(n + i);
  const bool kept = m1 - m0 > kTileRows;  // for the next rows; else a block is used where it was made
  for (int64_t m = m0; m < m1; m += kTileRows) {
    const int64_t rows = least(m1 - m, kTileRows);
    for (int64_t r = 0; r < rows; ++r) a_scale[r] = f.a_scale.of(m + r);
    memset(z, 0, rows * kPanel * sizeof(float));
    for (int64_t k = 0; k < f.depth; k += kBlock) {
      const int64_t block = k / kBlock, end = least(f.depth, k + kBlock);
      uint32_t* units = packed + (kept ? k / 2 * kPanel : 0);
      if (m == m0 && f.transposed) pack_columns(f, n, k, end, units);
      if (m == m0 && !f.transposed) {
        if (k % kFetched == 0) fetch_rows(f, n, k, least(f.depth, k + kFetched));
        pack_rows(f, n, k, end, units);
      }
      for (int64_t i = 0; i < lanes; ++i) sb[i] = b_scale[i][block * f.b_scale.block];
      block_of_panel(rows, lanes, (end - k + 1) / 2, units, f, m, block, a_scale, sb, z);
    }
    for (int64_t r = 0; r < rows; ++r) store_row(f, m + r, n, lanes, z + r * kPanel);
  }
}
}  // namespace r1::R1_ISA
