// A tile of the output of an FP8 product, and how threads store their sums of it.
#pragma once

#include <cstdint>

#include "cuda/common/hopper.h"

namespace r1 {
// A tile of the output, and the part of the reduction that it sums.
struct Tile {
  int row, end_row;  // of a: the tile's first, and the end of those that are stored
  int column;        // of the output, and the row of b within its expert
  int b_row;         // in b
  int first_block, blocks;
  int64_t b_scale;   // where the expert's scales begin
  int out_row;       // of the output, which row 0 of a would have
};

// Where sums go: as they are, rounded, or added to what is there.
struct FP8Output {
  enum Type { kFloat32, kBFloat16, kFloat16 };

  void* data;
  Type type;
  int64_t row_step;
  int rows, columns;
  bool adds;          // to what is there, of float32
  bool in_pairs;      // neighbours from an even column on lie in one aligned unit
  bool in_tiles;      // a tensor map describes it
  const float* bias;  // or null
};

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T of[2];
};

// Calls each(sum, element) for the sums of this thread in its row h, where the output's `row` has
// them: `first` is the column of the first. In pairs, where they are aligned.
template <class T, int kSums, class Each>
__device__ inline void over_row(const FP8Output& out, T* row, int first, float (&sums)[kSums], int h,
                                const Each& each) {
  if (out.in_pairs) {
#pragma unroll
    for (int j = 0; j < kSums / 4; ++j) {
      if (first + 8 * j >= out.columns) continue;
      Pair<T>& there = *reinterpret_cast<Pair<T>*>(row + first + 8 * j);
      Pair<T> pair;
      if constexpr (Each::kReads) pair = there;
      each(sums[4 * j + 2 * h], pair.of[0]), each(sums[4 * j + 2 * h + 1], pair.of[1]);
      if constexpr (!Each::kReads) there = pair;
    }
  } else {
#pragma unroll
    for (int j = 0; j < kSums / 4; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i)
        if (first + 8 * j + i < out.columns) each(sums[4 * j + 2 * h + i], row[first + 8 * j + i]);
  }
}

struct AddElement {
  static constexpr bool kReads = true;
  __device__ void operator()(float& sum, float element) const { sum += element; }
};
struct PutFloat {
  static constexpr bool kReads = false;
  __device__ void operator()(float sum, float& element) const { element = sum; }
};
struct PutRounded {
  static constexpr bool kReads = false;
  bool bf16;
  __device__ void operator()(float sum, uint16_t& element) const {
    element = bf16 ? pack_bf16(sum, 0) & 0xffff : half_bits(sum);
  }
};

// `sums` as Product has them, from the column `first` of this thread on.
template <int kSums>
__device__ inline void add_bias(const FP8Output& out, int first, float (&sums)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int column = first + i / 4 * 8 + i % 2;
    if (column < out.columns) sums[i] += out.bias[column];
  }
}

// The rows of `sums` that end before the tile does, `row` being this thread's first.
template <int kSums>
__device__ inline void store_rows(const FP8Output& out, const Tile& tile, int row,
                                  float (&sums)[kSums]) {
  const int first = tile.column + 2 * (threadIdx.x % 4);
#pragma unroll
  for (int h = 0; h < 2; ++h, row += 8) {
    if (row >= tile.end_row) continue;
    const int64_t at = (tile.out_row + row) * out.row_step;
    if (out.type == FP8Output::kFloat32) {
      float* there = static_cast<float*>(out.data) + at;
      if (out.adds) over_row(out, there, first, sums, h, AddElement{});
      over_row(out, there, first, sums, h, PutFloat{});
    } else {
      over_row(out, static_cast<uint16_t*>(out.data) + at, first, sums, h,
               PutRounded{out.type == FP8Output::kBFloat16});
    }
  }
}
}  // namespace r1
