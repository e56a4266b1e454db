// The order in which blocks take the tiles of a matrix: bands of about 2048 rows, in each of them
// column after column. What runs at one time then reads few rows and few columns again and again, and
// finds them in the L2 cache.
#pragma once

#include <bit>
#include <cstdint>

#include "cuda/fp8/tile.h"

namespace r1 {
// Divides numbers below 2³¹ by one that the host knows.
class Divisor {
 public:
  explicit Divisor(uint32_t by) : by_(by), shift_(by > 1 ? std::bit_width(by - 1) : 0) {
    factor_ = static_cast<uint32_t>((((uint64_t{1} << shift_) - by) << 32) / by + 1);
  }
  __device__ uint32_t quotient(uint32_t x) const { return (__umulhi(x, factor_) + x) >> shift_; }
  __device__ uint32_t by() const { return by_; }

 private:
  uint32_t by_, shift_, factor_;
};

// The tiles that the blocks of a cluster have at one time: one, or two beside each other, of which
// each block brings half of the operand that both need.
struct Pairs {
  int rows = 1, columns = 1;

  __host__ __device__ constexpr int blocks() const { return rows * columns; }
};

// A step is a tile or a pair of them. Some may be outside the matrix.
template <class Shape>
struct Order {
  static constexpr int kRows = Shape::kRows, kColumns = Shape::kColumns;
  static constexpr int kBandShift = kRows == 256 ? 3 : 4, kBand = 1 << kBandShift;  // tiles

  Pairs pairs;
  int column_steps;
  Divisor of_band;  // steps of a whole one

  Order(Pairs pairs, int64_t columns)
      : pairs(pairs),
        column_steps(static_cast<int>((columns + kColumns * pairs.columns - 1) /
                                      (kColumns * pairs.columns))),
        of_band((kBand >> (pairs.rows - 1)) * column_steps) {}

  __host__ __device__ int row_steps(int rows) const {
    return (rows + kRows * pairs.rows - 1) / kRows >> (pairs.rows - 1);
  }
  // Of this block, and from one of its turns to the next.
  __device__ int first_step() const { return blockIdx.x >> (pairs.blocks() - 1); }
  __device__ int turn() const { return gridDim.x >> (pairs.blocks() - 1); }
  // The tile of this block in a step of a matrix that has `row_steps`.
  __device__ void locate(int step, int row_steps, int& row, int& column) const {
    const int rank = blockIdx.x & (pairs.blocks() - 1);
    const int halved = pairs.rows - 1, whole = kBand >> halved;  // steps of a column of a band
    const int band = of_band.quotient(step), in_band = step - band * of_band.by();
    const int height = min(whole, row_steps - band * whole);
    const int column_step =
        height == whole ? in_band >> (kBandShift - halved) : in_band / height;
    const int row_step = band * whole + in_band - column_step * height;
    row = (row_step * pairs.rows + (pairs.rows - 1 & rank)) * kRows;
    column = (column_step * pairs.columns + (pairs.columns - 1 & rank)) * kColumns;
  }
};
}  // namespace r1
