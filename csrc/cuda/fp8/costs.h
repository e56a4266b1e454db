// What tiles of FP8 products cost on an H100: `python -m benchmarks tune --op fp8_gemm` measures it and
// writes this table.
#pragma once

#include "cuda/fp8/walk.h"

namespace r1 {
struct TileCost {
  int rows, columns;
  Pairs pairs;
  bool by_column;
  double block, rest;  // µs, of a block of 128 of the reduction, and of the rest of a tile
};

inline constexpr TileCost kTileCosts[] = {
    {256, 128, {1, 1}, false, 0.857, 2.21},
    {256, 128, {1, 2}, false, 0.878, 2.36},
    {256, 128, {2, 1}, false, 0.902, 1.73},
    {128, 192, {1, 1}, false, 0.696, 1.38},
    {128, 192, {1, 2}, false, 0.682, 1.44},
    {128, 192, {2, 1}, false, 0.698, 1.47},
    {128, 128, {1, 1}, false, 0.515, 0.84},
    {128, 128, {1, 2}, false, 0.532, 0.90},
    {128, 128, {2, 1}, false, 0.536, 0.96},
    {128, 128, {1, 1}, true, 0.724, 2.41},
    {128, 128, {1, 2}, true, 0.712, 2.04},
    {128, 128, {2, 1}, true, 0.802, 1.72},
};
}  // namespace r1
