// One row times FP8 weights as they lie, for AVX2: the reduction is in the lanes, nothing is transposed.
#pragma once

#include "cpu/fp8/panel.h"

#ifdef R1_ISA_IS_AVX2
namespace r1::R1_ISA {
// acc[i] += a·codes of 8 rows, 32 of each: lane r sums every eighth product from r on.
static inline void add_products(const float* a, const uint8_t* const (&row)[8], F (&acc)[8], __m256i& most) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m256i codes = load_as<__m256i>(row[i]);
    most = _mm256_max_epu8(most, doubled(codes));
    const __m256i even = halves(_mm256_unpacklo_epi8(__m256i{}, codes));  // codes 0 to 7, 16 to 23
    const __m256i odd = halves(_mm256_unpackhi_epi8(__m256i{}, codes));
    acc[i] = acc[i] + load(a) * floats(_mm256_castsi256_si128(even));
    acc[i] = acc[i] + load(a + 8) * floats(_mm256_castsi256_si128(odd));
    acc[i] = acc[i] + load(a + 16) * floats(_mm256_extracti128_si256(even, 1));
    acc[i] = acc[i] + load(a + 24) * floats(_mm256_extracti128_si256(odd, 1));
  }
}

// The sums of the codes k0 to k1 of 8 rows.
static inline F block_of_rows(const float* a, const uint8_t* const (&rows)[8], int64_t k0, int64_t k1) {
  constexpr int kStep = 4 * kWidth;
  F acc[8] = {};
  __m256i most{};
  const uint8_t* row[8];
  int64_t k = k0;
  for (; k + kStep <= k1; k += kStep) {
    for (int i = 0; i < 8; ++i) row[i] = rows[i] + k;
    add_products(a + k, row, acc, most);
  }
  if (k < k1) {
    uint8_t codes[8][kStep] = {};
    float left[kStep] = {};
    memcpy(left, a + k, (k1 - k) * sizeof(float));
    for (int i = 0; i < 8; ++i) row[i] = static_cast<uint8_t*>(memcpy(codes[i], rows[i] + k, k1 - k));
    add_products(left, row, acc, most);
  }
  if (__builtin_expect(has_nan(most), 0))
    for (int i = 0; i < 8; ++i)
      for (k = k0; k < k1; ++k)
        if ((rows[i][k] & 0x7f) == 0x7f) acc[i] = splat(__builtin_nanf(""));
  transpose(acc);
  for (int part = 1; part < kParts; ++part) acc[0] = acc[0] + acc[part];
  return acc[0];
}

// z[i] of `lanes` columns from n0 on.
static inline void multiply_row(const Fp8Product& f, int64_t m, int64_t n0, int64_t lanes, float* z) {
  const auto* a = reinterpret_cast<const float*>(f.a + m * f.units);
  const float* a_scale = f.a_scale.of(m);
  for (int64_t n = 0; n < lanes; n += kWidth) {
    const uint8_t* rows[kWidth];
    const float* b_scale[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      const int64_t at = n0 + least(n + i, lanes - 1);
      rows[i] = f.b + at * f.stride;
      b_scale[i] = f.b_scale.of(at);
    }
    F sums{};
    for (int64_t k = 0; k < f.depth; k += kBlock) {
      const int64_t block = k / kBlock;
      F sb;
      for (int i = 0; i < kWidth; ++i) sb[i] = b_scale[i][block * f.b_scale.block];
      const F of_block = block_of_rows(a, rows, k, least(f.depth, k + kBlock));
      sums = sums + of_block * splat(a_scale[block * f.a_scale.block]) * sb;
    }
    store(z + n, sums);
  }
}
}  // namespace r1::R1_ISA
#endif
