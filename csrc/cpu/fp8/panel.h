// The operands of an FP8 product as units of gemm.h: pairs of bf16 where an instruction multiplies
// those, else floats. The left one as it lies; of the right one a block of 48 columns as lanes.
#pragma once

#include "cpu/fp8/fp8.h"
#include "cpu/fp8/product.h"
#include "cpu/common/gemm.h"
#include "cpu/common/transpose.h"

namespace r1::R1_ISA {
#ifdef __AVX512BF16__
using Fp8Unit = BF16;
#else
using Fp8Unit = F32;
#endif

// What the numbers of a panel are too small by, those of the left operand being as much too large; and
// the parts that a block is summed in, every so many products one, as the lanes of fp8_row.h are.
#ifdef R1_ISA_IS_AVX2
constexpr float kPanelDivisor = 256;
constexpr int kParts = kWidth;
#else
constexpr float kPanelDivisor = 1;
constexpr int kParts = 1;
#endif

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#ifdef __AVX512BF16__
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
  const __m512i a = _mm512_maskz_unpacklo_epi32(0xffff, v[0], v[1]), b = _mm512_maskz_unpacklo_epi32(0xffff, v[2], v[3]);
  const __m512i c = _mm512_maskz_unpackhi_epi32(0xffff, v[0], v[1]), d = _mm512_maskz_unpackhi_epi32(0xffff, v[2], v[3]);
  quarter[0] = _mm512_maskz_unpacklo_epi64(0xff, a, b), quarter[1] = _mm512_maskz_unpackhi_epi64(0xff, a, b);
  quarter[2] = _mm512_maskz_unpacklo_epi64(0xff, c, d), quarter[3] = _mm512_maskz_unpackhi_epi64(0xff, c, d);
}

// Rows of b as lanes: [unit][kPanel] of the codes k0 to k1, which are transposed before they grow.
static inline void pack_rows(const Fp8Product& f, int64_t n0, int64_t k0, int64_t k1, uint32_t* out) {
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

// Columns of b as lanes: two rows of the reduction make a unit.
static inline void pack_columns(const Fp8Product& f, int64_t n0, int64_t k0, int64_t k1, uint32_t* out) {
  const int64_t lanes = least(f.columns - n0, kPanel);
  for (int64_t k = k0; k < k1; k += 2, out += kPanel) {
    const uint8_t* row = f.b + k * f.stride + n0;
    for (int64_t n = 0; n < lanes; n += kWidth) {
      U unit = (U)decode(load_codes(row + n, lanes - n)) >> 16;
      if (k + 1 < k1) unit |= (U)decode(load_codes(row + f.stride + n, lanes - n));
      store_as(out + n, unit);
    }
  }
}

static inline U left_units(const uint8_t* codes) { return decode_pairs(codes); }

#else

#ifdef R1_ISA_IS_AVX2
// The bits of a code are those of a half of which 2^8 times as much is meant: one shift from a float,
// subnormal or not. Only NaN would be 480.
static inline __m256i halves(__m256i codes_above) {  // a code in the upper byte of each 16 bits
  return _mm256_and_si256(_mm256_srai_epi16(codes_above, 1), _mm256_set1_epi16(short(0xbf80)));
}
static inline F floats(__m128i halves) { return (F)_mm256_cvtph_ps(halves); }

// What tells whether NaN is among codes: a byte of 0xfe.
static inline __m256i doubled(__m256i codes) { return _mm256_add_epi8(codes, codes); }
static inline bool has_nan(__m256i most_doubled) {
  return _mm256_movemask_epi8(_mm256_cmpeq_epi8(most_doubled, _mm256_set1_epi8(char(0xfe))));
}

// As it is rarely needed: the numbers anew, of kWidth codes a row.
__attribute__((cold, noinline)) static void decode_with_nan(const uint8_t* const* row, int rows, int64_t count,
                                                     int64_t step, int64_t lane, float* to) {
  for (int i = 0; i < rows; ++i)
    for (int64_t k = 0; k < count; ++k)
      to[k * step + i * lane] = decode(U{} + row[i][k])[0] / kPanelDivisor;
}

// kWidth rows of 4·kWidth codes, made columns: code k of all of them at to + k·kPanel, of `count` or the
// `whole`.
template <bool whole>
static inline void decode_columns(const uint8_t* const (&row)[kWidth], int64_t count, float* to) {
  __m256i v[8], w[8], most{};
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    v[i] = load_as<__m256i>(row[i]);
    most = _mm256_max_epu8(most, doubled(v[i]));
  }
#pragma GCC unroll 3
  for (int round = 0; round < 3; ++round) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      w[2 * i] = _mm256_unpacklo_epi8(v[i], v[i + 4]);
      w[2 * i + 1] = _mm256_unpackhi_epi8(v[i], v[i + 4]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) v[i] = w[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {  // codes 2·i and 2·i + 1, and 16 more, of all rows
    const __m256i even = halves(_mm256_unpacklo_epi8(__m256i{}, v[i]));
    const __m256i odd = halves(_mm256_unpackhi_epi8(__m256i{}, v[i]));
    const F four[] = {floats(_mm256_castsi256_si128(even)), floats(_mm256_castsi256_si128(odd)),
                      floats(_mm256_extracti128_si256(even, 1)), floats(_mm256_extracti128_si256(odd, 1))};
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const int k = 2 * i + j % 2 + j / 2 * 16;
      if (whole || k < count) store(to + k * kPanel, four[j]);
    }
  }
  if (has_nan(most)) decode_with_nan(row, 8, count, kPanel, 1, to);
}

// `count` codes of a row.
static inline void decode_panel_row(const uint8_t* codes, int64_t count, float* to) {
  for (int64_t n = 0; n < count; n += 2 * kWidth) {
    const PaddedCodes<2 * kWidth> some(codes + n, count - n);
    const __m128i c = load_as<__m128i>(some.p);
    const __m256i above = _mm256_slli_epi16(_mm256_cvtepu8_epi16(c), 8), half = halves(above);
    const F low = floats(_mm256_castsi256_si128(half)), high = floats(_mm256_extracti128_si256(half, 1));
    store(to + n, low);
    store(to + n + kWidth, high);
    if (has_nan(doubled(_mm256_castsi128_si256(c))))
      decode_with_nan(&some.p, 1, least(count - n, 2 * kWidth), 1, 0, to + n);
  }
}

#else
// kWidth rows of 4·kWidth codes, made columns: code k of all of them at to + k·kPanel, of `count` or the
// `whole`.
template <bool whole>
static inline void decode_columns(const uint8_t* const (&row)[kWidth], int64_t count, float* to) {
  F square[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) square[i] = load_as<F>(row[i]);
  transpose(square);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      if (whole || 4 * i + j < count) store(to + (4 * i + j) * kPanel, decode((U)square[i] >> 8 * j & 0xff));
}

// `count` codes of a row.
static inline void decode_panel_row(const uint8_t* codes, int64_t count, float* to) {
  for (int64_t n = 0; n < count; n += kWidth)
    store(to + n, decode(load_codes(codes + n, count - n)));
}
#endif

// Rows of b as lanes: [k][kPanel] of the codes k0 to k1, which are transposed before they grow.
static inline void pack_rows(const Fp8Product& f, int64_t n0, int64_t k0, int64_t k1, uint32_t* out) {
  constexpr int kStep = 4 * kWidth;
  const int64_t lanes = least(f.columns - n0, kPanel);
  for (int64_t n = 0; n < lanes; n += kWidth)
    for (int64_t k = k0; k < k1; k += kStep) {
      const uint8_t* codes = f.b + (n0 + n) * f.stride + k;
      const int64_t count = least(k1 - k, kStep);
      float* to = reinterpret_cast<float*>(out) + (k - k0) * kPanel + n;
      const uint8_t* row[kWidth];
      if (count == kStep && lanes - n >= kWidth) {
        for (int i = 0; i < kWidth; ++i) row[i] = codes + i * f.stride;
        decode_columns<true>(row, count, to);
      } else {
        uint8_t some[kWidth][kStep] = {};
        for (int i = 0; i < kWidth; ++i) {
          row[i] = some[i];
          if (i < lanes - n) memcpy(some[i], codes + i * f.stride, count);
        }
        decode_columns<false>(row, count, to);
      }
    }
}

// Columns of b as lanes.
static inline void pack_columns(const Fp8Product& f, int64_t n0, int64_t k0, int64_t k1, uint32_t* out) {
  const int64_t lanes = least(f.columns - n0, kPanel);
  for (int64_t k = k0; k < k1; ++k, out += kPanel)
    decode_panel_row(f.b + k * f.stride + n0, lanes, reinterpret_cast<float*>(out));
}

static inline U left_units(const uint8_t* codes) {
  return (U)(decode(load_codes(codes)) * splat(kPanelDivisor));
}
#endif

// Reads the codes k0 to k1 of a panel once, row by row, which memory answers several times as fast as
// the short pieces of many rows that packing asks for; they stay in the second cache until then.
static inline void fetch_rows(const Fp8Product& f, int64_t n0, int64_t k0, int64_t k1) {
  const int64_t lanes = least(f.columns - n0, kPanel);
  for (int64_t n = 0; n < lanes; ++n)
    for (int64_t k = k0; k < k1; k += 64) {
      const uint8_t code = f.b[(n0 + n) * f.stride + k];
      asm volatile("" : : "r"(code));  // read, though nobody needs it
    }
}
}  // namespace r1::R1_ISA
