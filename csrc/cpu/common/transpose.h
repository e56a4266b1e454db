// A square of vectors, its rows made columns.
#pragma once

#include <utility>

#include "cpu/common/simd.h"

namespace r1::R1_ISA {
// The first halves of a and b in turn, or with `from` their second halves.
template <int from, size_t... i>
static inline F in_turn(F a, F b, std::index_sequence<i...>) {
  return __builtin_shufflevector(a, b, (from + i / 2 + i % 2 * kWidth)...);
}

// A square of elements: each round rotates the bits of (row, column) by one place.
static inline void transpose(F (&v)[kWidth]) {
  constexpr auto lanes = std::make_index_sequence<kWidth>();
#pragma GCC unroll 4
  for (int round = 1; round < kWidth; round *= 2) {
    F w[kWidth];
#pragma GCC unroll 8
    for (int i = 0; i < kWidth / 2; ++i) {
      w[2 * i] = in_turn<0>(v[i], v[i + kWidth / 2], lanes);
      w[2 * i + 1] = in_turn<kWidth / 2>(v[i], v[i + kWidth / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) v[i] = w[i];
  }
}
}  // namespace r1::R1_ISA
