// Products of pairs of bf16 on AMX: tiles of 16 rows of 16 units.
//
// A panel as gemm.h has it is what the instruction takes on its right, and rows of units what it
// takes on its left. It sums 16 units from zero, the low and the high elements apart, and adds both
// to the tile: an element of the result is the same bits whatever m, n or the number of threads.
#pragma once

#include "cpu/common/gemm_operands.h"
#include "cpu/common/transpose.h"

namespace r1 {
constexpr int64_t kSquare = 16;  // side of what `turn` turns: scratch for it has whole squares
}

namespace r1::R1_ISA {
// Makes units in lanes, [unit][kPanel], a left operand: Left{lanes, 1, kPanel}. Tiles need the units
// of a row side by side, so each square of lanes and units is transposed where it is.
template <class T>
static inline void turn(uint32_t* lanes, int64_t depth) {
#ifdef __AMX_BF16__
  if constexpr (T::kPerUnit == 2)
    for (int64_t k = 0; k < depth; k += kSquare, lanes += kSquare * kPanel)
      for (int64_t n = 0; n < kPanel; n += kSquare) {
        F square[kSquare];
#pragma GCC unroll 16
        for (int i = 0; i < kSquare; ++i) square[i] = load_as<F>(lanes + i * kPanel + n);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kSquare; ++i) store_as(lanes + i * kPanel + n, square[i]);
      }
#endif
}

#ifdef __AMX_BF16__
// Of eight tiles, 0 to 5 hold sums, 6 rows of the left operand, and 7 units of the right one.
constexpr int kLeft = 6, kRight = 7;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16];
};

// For `rows` rows of the left operand. Naming the shapes anew takes ten times as long as looking, and
// other libraries of the process name theirs.
static inline void shape_tiles(int64_t rows) {
  const auto r = static_cast<uint8_t>(rows);
  const TileShapes wanted{.rows = {r, r, r, r, r, r, r, kSquare}};
  TileShapes now;
  asm volatile("sttilecfg %0" : "=m"(now));
  if (memcmp(&now, &wanted, sizeof(now)) != 0) asm volatile("ldtilecfg %0" : : "m"(wanted));
}

template <int tile>
static inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}
template <int tile>
static inline void tile_load(const void* p, int64_t stride) {  // in units
  asm volatile("tileloadd (%1,%2,4), %%tmm%c0" : : "i"(tile), "r"(p), "r"(stride) : "memory");
}
template <int tile>
static inline void tile_store(void* p, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,4)" : : "i"(tile), "r"(p), "r"(stride) : "memory");
}
template <int sums>
static inline void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(kLeft), "i"(kRight));
}

template <int count, class Body, int i = 0>
static inline __attribute__((always_inline)) void unrolled(const Body& body) {
  if constexpr (i < count) {
    body.template operator()<i>();
    unrolled<count, Body, i + 1>(body);
  }
}

// The rows of a left operand from one on, as tiles are loaded: `stride` between the rows of a tile.
// Where they were turned, a tile's rows lie as its units did.
struct LeftTiles {
  const uint32_t* a;
  int64_t stride, next, unit, ahead;
  LeftTiles(Left left, int64_t m)
      : a(left.a + m * left.row), stride(left.row == 1 ? left.unit : left.row),
        next(kSquare * left.row), unit(left.unit), ahead(left.ahead) {}
  // 16 units of a row, from unit k on; k is a multiple of 16.
  const uint32_t* row(int64_t r, int64_t k) const {
    return a + k * unit + r / kSquare * next + r % kSquare * stride;
  }
};

// Tile NR·m + n += rows 16·m on × lanes 16·n on. Rows far apart are loaded once; of the panel, which
// lies close, the last lanes of one m are the first of the next and stay.
template <int MT, int NR>
static inline void add_products(const uint32_t* a, int64_t next, int64_t stride, const uint32_t* b) {
  unrolled<MT>([&]<int m>() {
    tile_load<kLeft>(a + m * next, stride);
    unrolled<NR>([&]<int i>() {
      constexpr int n = m % 2 ? NR - 1 - i : i;
      if (i > 0 || m == 0) tile_load<kRight>(b + n * kSquare, kPanel);
      tile_multiply<NR * m + n>();
    });
  });
}

// MT tiles of rows, of which the last may have fewer than 16, by NR of lanes; `end`: the last units
// of the right operand with zeros to 16, if depth is no multiple of that.
template <int MT, int NR>
static inline void sum_tiles(int64_t rows, int64_t depth, const LeftTiles& left, const uint32_t* b,
                             const uint32_t* end, float* c, int64_t ldc, bool accumulate) {
  unrolled<MT * NR>([&]<int i>() {
    if (accumulate) tile_load<i>(c + i / NR * kSquare * ldc + i % NR * kSquare, ldc);
    else tile_zero<i>();
  });
  int64_t k = 0;
  for (; k + kSquare <= depth; k += kSquare) {
    for (int64_t r = 0; left.ahead && r < rows; ++r)
      __builtin_prefetch(left.row(r, k) + left.ahead, 0, 2);
    add_products<MT, NR>(left.row(0, k), left.next, left.stride, b + k * kPanel);
  }
  if (k < depth) {
    alignas(64) uint32_t a[MT * kSquare * kSquare];
    const auto some = static_cast<__mmask16>((1 << (depth - k)) - 1);
    for (int64_t r = 0; r < rows; ++r)
      store_as(a + r * kSquare, _mm512_maskz_loadu_epi32(some, left.row(r, k)));
    add_products<MT, NR>(a, kSquare * kSquare, kSquare, end);
  }
  unrolled<MT * NR>([&]<int i>() {
    tile_store<i>(c + i / NR * kSquare * ldc + i % NR * kSquare, ldc);
  });
}

template <int NR>
static void gemm_tiles(int64_t rows, int64_t depth, Left left, const uint32_t* b, float* c,
                       int64_t ldc, bool accumulate) {
  alignas(64) uint32_t end[kSquare * kPanel];
  if (const int64_t rest = depth % kSquare) {
    memcpy(end, b + (depth - rest) * kPanel, rest * kPanel * 4);
    memset(end + rest * kPanel, 0, (kSquare - rest) * kPanel * 4);
  }
  const auto sum = [&]<int MT>(int64_t m, int64_t count) {
    sum_tiles<MT, NR>(count, depth, LeftTiles(left, m), b, end, c + m * ldc, ldc, accumulate);
  };
  int64_t m = 0;
  if (rows >= kSquare) shape_tiles(kSquare);
  for (; m + 2 * kSquare <= rows; m += 2 * kSquare) sum.template operator()<2>(m, 2 * kSquare);
  for (; m + kSquare <= rows; m += kSquare) sum.template operator()<1>(m, kSquare);
  if (m == rows) return;
  shape_tiles(rows - m);
  sum.template operator()<1>(m, rows - m);
}

// One panel, as gemm_panel's.
static void gemm_tiles(int64_t rows, int64_t lanes, int64_t depth, Left left, const uint32_t* b,
                       float* c, int64_t ldc, bool accumulate) {
  if (lanes <= kSquare) gemm_tiles<1>(rows, depth, left, b, c, ldc, accumulate);
  else if (lanes <= 2 * kSquare) gemm_tiles<2>(rows, depth, left, b, c, ldc, accumulate);
  else gemm_tiles<3>(rows, depth, left, b, c, ldc, accumulate);
}
#endif
}  // namespace r1::R1_ISA
