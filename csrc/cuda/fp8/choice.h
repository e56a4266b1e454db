// Which tiles a product of FP8 tensors takes: those whose estimated time is least.
#pragma once

#include <cstdint>

#include "cuda/fp8/costs.h"

namespace r1 {
struct TileChoice {
  int rows, columns;
  Pairs pairs;
};

struct ProductSize {
  int64_t experts, rows, columns, blocks;  // rows and columns of each expert, blocks of 128 of K
  bool by_column;                          // scales of each column
};

// Microseconds until the last tile is done, when all multiprocessors have as many as the busiest.
inline double time_of(const ProductSize& size, const TileCost& tile, int multiprocessors) {
  const auto count = [](int64_t size, int64_t each) { return (size + each - 1) / each; };
  const int64_t steps = size.experts * count(size.rows, tile.rows * tile.pairs.rows) *
                        count(size.columns, tile.columns * tile.pairs.columns);
  return count(steps, multiprocessors / tile.pairs.blocks()) * (size.blocks * tile.block + tile.rest);
}

inline TileChoice choose_tile(const ProductSize& size, int multiprocessors) {
  const TileCost* best = nullptr;
  for (const TileCost& tile : kTileCosts) {
    if (tile.by_column != size.by_column || tile.pairs.blocks() > multiprocessors) continue;
    if (best == nullptr || time_of(size, tile, multiprocessors) < time_of(size, *best, multiprocessors))
      best = &tile;
  }
  return {best->rows, best->columns, best->pairs};
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
