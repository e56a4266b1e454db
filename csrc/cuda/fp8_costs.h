// What tiles of FP8 products cost on an H100: `python -m benchmarks tune --op fp8_gemm` measures it and
// writes this table.
#pragma once

#include "cuda/fp8_walk.h"

namespace r1 {
struct TileCost {
  int rows, columns;
  Pairs pairs;
  bool by_column;
  double block, rest;  // µs, of a block of 128 of the reduction, and of the rest of a tile
};

inline constexpr TileCost kTileCosts[] = {
    {256, 128, {1, 1}, false, 0.80, 1.5},
    {256, 128, {1, 2}, false, 0.72, 1.5},
    {256, 128, {2, 1}, false, 0.74, 1.5},
    {128, 192, {1, 1}, false, 0.62, 1.3},
    {128, 192, {1, 2}, false, 0.57, 1.3},
    {128, 192, {2, 1}, false, 0.55, 1.3},
    {128, 128, {1, 1}, false, 0.46, 1.1},
    {128, 128, {1, 2}, false, 0.42, 1.1},
    {128, 128, {2, 1}, false, 0.42, 1.1},
    {128, 128, {1, 1}, true, 0.50, 1.3},
    {128, 128, {1, 2}, true, 0.46, 1.3},
    {128, 128, {2, 1}, true, 0.46, 1.3},
    {128, 160, {1, 1}, true, 0.56, 1.5},
    {128, 160, {1, 2}, true, 0.52, 1.5},
    {128, 160, {2, 1}, true, 0.52, 1.5},
};
}  // namespace r1
