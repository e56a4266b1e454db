// The main loop of all products of FP8 tensors on sm_90a. Blocks stay and walk over tiles of the
// output: one warp group brings blocks of 128 columns of a and b, and their scales, into a ring in
// shared memory; two others multiply. What differs between the products is the walk alone: a struct
// whose next(tile) gives a block's tiles, the same ones to each of its threads.
//
// The tensor cores add up one block of 128 of the reduction, from zero; its scales promote it into
// sums of float32 beside. Each warp group has one such block in 64 registers a thread, of 64 rows,
// and the sums of one or two; while it promotes, the other one multiplies.
#pragma once

#include <cstdint>

#include "cuda/fp8_tile.h"
#include "cuda/hopper.h"

namespace r1 {
constexpr int kFP8Threads = 3 * kWarpGroup;
constexpr int kTileColumns = 128, kTileBlock = 128;

// Tiles of 128 or 256 rows: `kHeights` times 64 for each of the two warp groups.
template <int kHeights>
constexpr int kTileRows = 2 * 64 * kHeights;

// The scales of a's or b's rows: of row r and block k that at (r >> shift)·row_step + k·block_step.
struct FP8Scales {
  const float* values;
  int shift;
  int64_t row_step, block_step;

  __device__ float at(int64_t base, int row, int block) const {
    return values[base + (row >> shift) * row_step + block * block_step];
  }
};

struct FP8Problem {
  FP8Scales a, b;
  int a_rows, b_rows;  // that have scales; of one expert
  FP8Output out;
};

// kByColumn: the scales of b change within the columns of a tile.
template <int kHeights, bool kByColumn>
struct FP8Shared {
  static constexpr int kStages = kHeights == 1 ? 6 : 4;
  static constexpr int kBytes = (kTileRows<kHeights> + kTileColumns) * kTileBlock;

  struct Codes {
    unsigned char a[kTileRows<kHeights> * kTileBlock], b[kTileColumns * kTileBlock];
  };
  Codes codes[kStages];  // at a multiple of 1024
  float a_scale[kStages][kTileRows<kHeights>];
  float b_scale[kStages][kByColumn ? kTileColumns : 1];
  Barrier full[kStages], empty[kStages];

  static constexpr int kRoom = 1024;  // to reach such a multiple
  __device__ static FP8Shared& here() {
    unsigned char* from = dynamic_shared();
    return *reinterpret_cast<FP8Shared*>(from + -reinterpret_cast<uintptr_t>(from) % kRoom);
  }
};

// A place in the ring, and the parity of the turn it is in.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

template <class Shared, class Walk>
__device__ inline void bring_codes(Shared& shared, const TensorMap& a, const TensorMap& b,
                                   Walk walk) {
  RingPlace<Shared::kStages> at;
  for (Tile tile; walk.next(tile);) {
    for (int block = 0; block < tile.blocks; ++block, at.advance()) {
      Barrier& full = shared.full[at.stage];
      const int column = (tile.first_block + block) * kTileBlock;
      shared.empty[at.stage].wait(at.parity ^ 1);
      full.arrive_and_expect(Shared::kBytes);
      copy_tile(shared.codes[at.stage].a, a, tile.row, column, full);
      copy_tile(shared.codes[at.stage].b, b, tile.b_row, column, full);
    }
  }
}

struct FirstScale {
  int row;
  int64_t base;  // where those of its expert begin
};

// By one warp: the scales of `kCount` rows of a tile, or one for all of them, if kCount is 1. Rows
// outside have the last one's: their sums are not stored.
template <int kCount, class Stages, class Walk, class First>
__device__ inline void bring_scales(Stages& shared, float (*to)[kCount], const FP8Scales& scales,
                                    int rows, Walk walk, const First& first) {
  constexpr int kEach = (kCount + 31) / 32;
  const int lane = kCount == 1 ? 0 : threadIdx.x % 32;
  RingPlace<Stages::kStages> at;
  for (Tile tile; walk.next(tile);) {
    const auto [row, base] = first(tile);
#pragma unroll 1
    for (int block = 0; block < tile.blocks; ++block, at.advance()) {
      float scale[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        scale[i] = scales.at(base, min(row + 32 * i + lane, rows - 1), tile.first_block + block);
      shared.empty[at.stage].wait(at.parity ^ 1);
#pragma unroll
      for (int i = 0; i < kEach; ++i) to[at.stage][32 * i + lane] = scale[i];
      shared.full[at.stage].arrive();
    }
  }
}

// sums += product · its scales, of two rows and, unless kByColumn, of all columns of this thread.
template <bool kByColumn>
__device__ inline void promote(float (&sums)[64], const Product& product, const float (&of_row)[2],
                               float of_all, const float* b_scale) {
#pragma unroll
  for (int j = 0; j < 16; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float of_column = kByColumn ? b_scale[8 * j + 2 * (threadIdx.x % 4) + i] : of_all;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float& sum = sums[4 * j + 2 * h + i];
        sum = fmaf(product.of[4 * j + 2 * h + i], of_row[h] * of_column, sum);
      }
    }
  }
}

// By a warp group, `group` being 0 or 1: it has every other 64 rows of a tile.
template <int kHeights, bool kByColumn, class Walk>
__device__ inline void multiply_tiles(FP8Shared<kHeights, kByColumn>& shared,
                                      const FP8Output& out, Walk walk, int group) {
  const int t = threadIdx.x % kWarpGroup, own_row = t / 32 * 16 + t % 32 / 4;
  RingPlace<FP8Shared<kHeights, kByColumn>::kStages> at;
  for (Tile tile; walk.next(tile);) {
    float sums[kHeights][64] = {};
    for (int block = 0; block < tile.blocks; ++block, at.advance()) {
      const auto& codes = shared.codes[at.stage];
      shared.full[at.stage].wait(at.parity);
#pragma unroll
      for (int p = 0; p < kHeights; ++p) {
        const int first = (2 * p + group) * 64;
        Product product;
        product.start(codes.a + first * kTileBlock, codes.b);
        const float* a_scale = &shared.a_scale[at.stage][first + own_row];
        const float* b_scale = shared.b_scale[at.stage];
        const float of_row[2] = {a_scale[0], a_scale[8]}, of_all = b_scale[0];
        product.finish();
        promote<kByColumn>(sums[p], product, of_row, of_all, b_scale);
      }
      __syncwarp();
      if (t % 32 == 0) shared.empty[at.stage].arrive();
    }
#pragma unroll
    for (int p = 0; p < kHeights; ++p)
      store(out, tile, tile.row + (2 * p + group) * 64 + own_row, sums[p]);
  }
}

template <int kHeights, bool kByColumn, class Walk>
__global__ void __launch_bounds__(kFP8Threads, 1)
    fp8_product(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                const FP8Problem in, const Walk walk) {
  using Shared = FP8Shared<kHeights, kByColumn>;
  Shared& shared = Shared::here();
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Shared::kStages; ++s) {
      shared.full[s].start(1 + 2 * 32);            // the codes, and each lane that brings scales
      shared.empty[s].start(2 * kWarpGroup / 32);  // each warp that multiplies
    }
    publish_arrivals();
  }
  __syncthreads();
  // Of one lane, which tells the compiler that a warp group agrees on it.
  const int group = __shfl_sync(0xffffffff, threadIdx.x / kWarpGroup, 0);
  if (group == 0) {
    give_up_registers<56>();
    if (threadIdx.x == 0) bring_codes(shared, a, b, walk);
    if (warp == 1)
      bring_scales(shared, shared.a_scale, in.a, in.a_rows, walk,
                   [](const Tile& tile) { return FirstScale{tile.row, 0}; });
    if (warp == 2)
      bring_scales(shared, shared.b_scale, in.b, in.b_rows, walk,
                   [](const Tile& tile) { return FirstScale{tile.column, tile.b_scale}; });
  } else {
    take_registers<224>();
    multiply_tiles<kHeights, kByColumn>(shared, in.out, walk, group - 1);
  }
}
}  // namespace r1
