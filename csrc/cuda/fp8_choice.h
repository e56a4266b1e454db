// Which tiles a product of FP8 tensors takes: those whose estimated time is least.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "cuda/fp8_walk.h"

namespace r1 {
struct TileChoice {
  int rows, columns;
  Pairs pairs;
};

struct ProductSize {
  int64_t experts, rows, columns, blocks;  // rows and columns of each expert, blocks of 128 of K
  bool by_column, wide;                    // scales of each column; an output of 4 bytes
};

// Cycles of a multiprocessor until the last tile is done, all of them having as many as the busiest.
// A block of the reduction takes as long as the slowest of tensor cores, shared memory (128 bytes a
// cycle, written once, read by each 64 rows) and L2 (what of 5.5 TB/s a multiprocessor gets, as
// DeepGEMM's chooser has it); the rest of a tile is its epilogue.
inline double cycles(const ProductSize& size, const TileChoice& tile, int multiprocessors) {
  const auto count = [](int64_t size, int64_t each) { return (size + each - 1) / each; };
  const int64_t steps = size.experts * count(size.rows, tile.rows * tile.pairs.rows) *
                        count(size.columns, tile.columns * tile.pairs.columns);
  const int64_t turns = count(steps, multiprocessors / tile.pairs.blocks());
  const double tensor = tile.rows / 64 * tile.columns * 2;
  const double shared = tile.rows + tile.columns + tile.rows / 64 * (64 + tile.columns);
  const double l2 = 128 / 46.6 * (tile.rows / tile.pairs.columns + tile.columns / tile.pairs.rows);
  const double rest = 0.08 * tile.rows * tile.columns;
  return turns * (size.blocks * std::max({tensor, shared, l2}) + rest);
}

inline TileChoice choose_tile(const ProductSize& size, int multiprocessors) {
  constexpr std::array<std::array<int, 2>, 3> kTiles{{{256, 128}, {128, 192}, {128, 128}}};
  constexpr std::array<Pairs, 3> kPairs{{{1, 1}, {1, 2}, {2, 1}}};
  TileChoice best{128, 128, {}};
  double least = cycles(size, best, multiprocessors);
  for (const auto& [rows, columns] : kTiles) {
    if (size.by_column && rows * columns > 128 * 128) continue;
    if (size.wide && columns == 192) continue;  // not enough shared memory to store it from
    for (const Pairs& pairs : kPairs) {
      if (pairs.blocks() > multiprocessors) continue;
      const TileChoice tile{rows, columns, pairs};
      const double now = cycles(size, tile, multiprocessors);
      if (now < least) least = now, best = tile;
    }
  }
  return best;
}

// Taken instead of what would be chosen, to measure it; and what is left out then, see LeftOut.
struct ForcedTile {
  TileChoice tile{0, 0, {}};
  int left_out = 0;
  bool direct = false;  // sums go to memory from registers
};
inline ForcedTile& forced_tile() {
  static ForcedTile forced;
  return forced;
}
}  // namespace r1
