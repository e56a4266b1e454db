// e4m3 codes to floats and back, exactly, whatever becomes of subnormal floats on this machine.
#pragma once

#include "cpu/common/simd.h"

namespace r1::R1_ISA {
// The codes in the low bytes of the lanes, with nothing above them.
static inline F decode(U code) {
  const U magnitude = code & 0x7f;
  const F subnormal = __builtin_convertvector((I)magnitude, F) * splat(0x1p-9f);
  U bits = (magnitude << 20) + (120u << 23);
  bits = magnitude < 8 ? (U)subnormal : bits;
  bits = magnitude == 0x7f ? splat_bits(0x7fc00000) : bits;
  return (F)(bits | (code & 0x80) << 24);
}

// The nearest codes, ties to even, of |v| up to 464, without a sign and with kAbove on top. What is
// added has the last place of a code as its own, 2^-9 at least: the sum is rounded, and counts those.
constexpr uint32_t kAbove = 0x3c8;
static inline U encode_above(F v) {
  const U bits = (U)v & 0x7fffffff;
  const U exponent = (U)max((F)(bits & 0x7f800000), splat(0x1p-6f));
  const U added = exponent + (20u << 23);
  return (U)((F)bits + (F)added) - added + (exponent >> 20);
}

static inline U is_number(F x) { return (U)(((U)x & 0x7f800000) != 0x7f800000); }

// Whether all of these are, as bits of magnitudes.
static inline bool are_numbers(U magnitudes) {
  bool all = true;
  for (int i = 0; i < kWidth; ++i) all &= magnitudes[i] < 0x7f800000;
  return all;
}

// The codes of x·factor, at most 464 in magnitude; what is no number, unless all are, becomes NaN.
template <bool numbers = false>
static inline U encode(F x, F factor) {
  U code = encode_above(x * factor) - kAbove;
  if (!numbers) code = is_number(x) ? code : splat_bits(0x7f);
  return code | ((U)x >> 24 & 0x80);
}

// |x| as bits, which are ordered as the numbers are, and larger than any in what is none; 0 for that.
static inline U magnitude(F x) { return (U)x & 0x7fffffff; }
static inline U number_magnitude(F x) { return (U)x & 0x7fffffff & is_number(x); }

static inline U largest(U a, U b) { return a > b ? a : b; }

#ifdef __AVX512BF16__
struct Bf16Table {  // of every code without its sign
  alignas(64) uint16_t bits[128];
  constexpr Bf16Table() : bits() {
    for (int c = 0; c < 128; ++c) {
      int m = c & 7, exponent = (c >> 3) + 120;
      if (c < 8)  // subnormal: m·2^-9
        for (exponent = m ? 121 : 0; m && !(m & 8); m *= 2) --exponent;
      bits[c] = uint16_t(exponent << 7 | (m & 7) << 4);
    }
    bits[127] = 0x7fc0;
  }
};

// The halves of bf16 numbers by code, and the bytes that make two units of a lane's four codes.
struct alignas(64) Bf16Halves {
  uint8_t low[128], high[128], from[2][64];

  constexpr Bf16Halves() : low(), high(), from() {
    const Bf16Table codes;
    for (int c = 0; c < 128; ++c) {
      low[c] = uint8_t(codes.bits[c]);
      high[c] = uint8_t(codes.bits[c] >> 8);
    }
    for (int i = 0; i < 64; ++i)  // low byte, high byte (64 on), of codes 0 and 1 or 2 and 3
      for (int j = 0; j < 2; ++j) from[j][i] = uint8_t((i & ~3) + 2 * j + (i >> 1 & 1) + (i & 1) * 64);
  }
};

static inline void decode_fours(__m512i code, U& one, U& two) {
  static constexpr Bf16Halves halves;
  const auto at = [](const uint8_t* p) { return _mm512_load_si512(p); };
  const __m512i sign = _mm512_and_si512(code, _mm512_set1_epi8(char(0x80)));
  const __m512i low = _mm512_permutex2var_epi8(at(halves.low), code, at(halves.low + 64));
  const __m512i high = _mm512_or_si512(
      _mm512_permutex2var_epi8(at(halves.high), code, at(halves.high + 64)), sign);
  one = (U)_mm512_permutex2var_epi8(low, at(halves.from[0]), high);
  two = (U)_mm512_permutex2var_epi8(low, at(halves.from[1]), high);
}

// 2·kWidth neighbouring codes as bf16, two in a lane, the first one in the low half.
static inline U decode_pairs(const uint8_t* p) {
  static constexpr Bf16Table codes;
  const __m512i* table = reinterpret_cast<const __m512i*>(codes.bits);
  const __m512i code = _mm512_cvtepu8_epi16(load_as<__m256i>(p));
  const __m512i low = _mm512_permutex2var_epi16(table[0], code, table[1]);
  const __m512i high = _mm512_permutex2var_epi16(table[2], code, table[3]);
  const __mmask32 upper = _mm512_test_epi16_mask(code, _mm512_set1_epi16(0x40));
  const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(code, _mm512_set1_epi16(0x80)), 8);
  return (U)_mm512_or_si512(_mm512_mask_mov_epi16(low, upper, high), sign);
}
#endif

typedef uint8_t CodeVector __attribute__((vector_size(kWidth)));

// By way of 16 bits: the compiler has instructions for each step, and none for both at once.
static inline U load_codes(const uint8_t* p) {
  return widen(__builtin_convertvector(load_as<CodeVector>(p), H));
}
// Up to `whole` codes, and zeros after them: where they are if there are as many.
template <int whole>
struct PaddedCodes {
  uint8_t some[whole];
  const uint8_t* p = some;

  PaddedCodes(const uint8_t* codes, int64_t count) {
    if (count >= whole) {
      p = codes;
      return;
    }
    memset(some, 0, whole);
    if (count > 0) memcpy(some, codes, count);
  }
};

// Up to a vector of codes.
static inline U load_codes(const uint8_t* p, int64_t count) {
  return load_codes(PaddedCodes<kWidth>(p, count).p);
}
static inline void store_codes(uint8_t* p, U code) {
  store_as(p, __builtin_convertvector(__builtin_convertvector(code, H), CodeVector));
}

// The codes of 4·kWidth numbers, load(i) from i on, times a factor.
template <bool numbers, class Load>
static inline void store_encoded(uint8_t* to, F factor, const Load& load) {
#ifdef R1_ISA_IS_AVX2
  __m256i sign[2], code[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    __m256i x[2], c[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const F v = load((2 * i + j) * kWidth);
      const U above = encode_above(v * factor);
      x[j] = (__m256i)v, c[j] = (__m256i)(numbers ? above : is_number(v) ? above : splat_bits(kAbove + 0x7f));
    }
    sign[i] = _mm256_packs_epi32(x[0], x[1]);  // saturated, a sign stays where it is
    code[i] = _mm256_sub_epi16(_mm256_packus_epi32(c[0], c[1]), _mm256_set1_epi16(kAbove));
  }
  const __m256i signs = _mm256_and_si256(_mm256_packs_epi16(sign[0], sign[1]), _mm256_set1_epi8(char(0x80)));
  const __m256i all = _mm256_or_si256(_mm256_packus_epi16(code[0], code[1]), signs);
  store_as(to, _mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
#else
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    store_codes(to + i * kWidth, encode<numbers>(load(i * kWidth), factor));
#endif
}
}  // namespace r1::R1_ISA
