// The operands of the matrix products: units of 32 bits, a left one in place, a right one in panels.
#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "cpu/common/simd.h"

namespace r1 {
constexpr int kPanel = 48;  // lanes of a panel; a multiple of every vector width
}

namespace r1::R1_ISA {
struct F32 {
  using Element = float;
  using Elements = U;  // a vector of them, as bits
  static constexpr int kPerUnit = 1;
  static inline F dot(F acc, U a, U b) { return acc + (F)a * (F)b; }
  static inline float element(float x) { return x; }
  static inline float scalar(float x) { return x; }
  static inline F rounded(F x) { return x; }
  static inline uint32_t unit(float x, float) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
  }
  static inline U units(F x, F) { return (U)x; }
  static inline U pair(U x, U) { return x; }
  static inline void set(uint32_t& u, int64_t, float x) { u = unit(x, 0); }
  static inline F load(const float* p) { return R1_ISA::load(p); }
  static inline void store(float* p, F v) { R1_ISA::store(p, v); }
};

struct BF16 {
  using Element = uint16_t;
  using Elements = H;
  static constexpr int kPerUnit = 2;
  static inline F dot(F acc, U a, U b) {
#ifdef __AVX512BF16__
    return (F)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    acc = acc + (F)(a << 16) * (F)(b << 16);
    return acc + (F)(a & 0xffff0000u) * (F)(b & 0xffff0000u);
#endif
  }
  static inline uint16_t element(float x) { return float_to_bf16(x); }
  static inline float scalar(uint16_t x) { return bf16_to_float(x); }
  static inline F rounded(F x) { return from_bf16(to_bf16(x)); }
  static inline uint32_t unit(float low, float high) {
    return uint32_t(element(low)) | uint32_t(element(high)) << 16;
  }
  static inline void set(uint32_t& u, int64_t which, uint16_t x) {
    u = which ? (u & 0xffffu) | uint32_t(x) << 16 : (u & 0xffff0000u) | x;
  }
  static inline U units(F low, F high) { return bf16_bits(low) | bf16_bits(high) << 16; }
  static inline U pair(H low, H high) {
    return widen(low) | widen(high) << 16;
  }
  static inline F load(const uint16_t* p) { return load_bf16(p); }
  static inline void store(uint16_t* p, F v) { store_bf16(p, v); }
};

// Left operand: unit (m, k) is at a[m·row + k·unit], both strides in units.
struct Left {
  const uint32_t* a;
  int64_t row, unit;
  int64_t ahead = 0;  // units from here to what is read next, to be fetched meanwhile; 0 for nothing
};
}  // namespace r1::R1_ISA
