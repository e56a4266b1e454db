// The main loop of all products of FP8 tensors on sm_90a. Blocks stay and walk over tiles of the
// output: one thread brings blocks of 128 columns of a and b, and the scales of their rows, into a
// ring in shared memory; two warp groups multiply. What differs between the products is the walk
// alone: a struct whose next(tile) gives a block's tiles, to the thread that copies; it hands them on.
//
// The tensor cores add up one block of 128 of the reduction, from zero; its scales promote it into
// sums of float32 beside. Each warp group has one such block of 64 rows in registers, and the sums of
// one or two; while it promotes, the other one multiplies.
//
// Blocks may come in clusters of two, whose tiles share rows of a or of b: each then brings half of
// them to both. A stage is free when the warps of both have read it.
#pragma once

#include <cstdint>

#include "cuda/fp8/stage.h"
#include "cuda/fp8/walk.h"
#include "cuda/common/hopper.h"

namespace r1 {
constexpr int kFP8Threads = 3 * kWarpGroup;
constexpr int kTileBlock = 128;
constexpr int kTiles = 4;  // that the copies may be ahead

// Tiles of 128 or 256 rows, so that each of two warp groups has one or two times 64.
// kByColumn: the scales of b change within the columns of a tile, not at multiples of 128 alone.
template <int kRows_, int kColumns_, bool kByColumn_>
struct FP8Shape {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kHeights = kRows / 128;
  static constexpr bool kByColumn = kByColumn_;
  static constexpr int kSums = kColumns / 2;
  static constexpr int kStages = kRows == 256 ? 3 : 4;
  static constexpr int kPanels = kColumns > 128 ? 3 : 4;  // of a warp group's output, at a time
  // Of a thread that copies, and of one that multiplies: 504 in all.
  static constexpr int kFewRegisters = kByColumn ? 72 : 56;
  static constexpr int kManyRegisters = (504 - kFewRegisters) / 2;
};

// The scales of rows that have one each: of row r and block k that at k·block_step + r. There is
// memory for `rows` of them, a multiple of 4, as block_step is.
struct RowScales {
  const float* values;
  int64_t block_step;
  int rows;
};

// Scales of any rows: of row r and block k that at (r >> shift)·row_step + k·block_step.
struct FP8Scales {
  const float* values;
  int shift;
  int64_t row_step, block_step;

  __device__ const float* of(int64_t base, int row, int block) const {
    return values + base + (row >> shift) * row_step + block * block_step;
  }
};

struct FP8Problem {
  RowScales a, b;     // b's only by column
  FP8Scales squares;  // b's otherwise
  int b_rows;         // of an expert
  Pairs pairs;
  FP8Output out;
  bool in_turns;     // the warp groups multiply one after the other
  int left_out = 0;  // parts of the work, to see what they cost: see LeftOut
};

// Only a build with R1_FP8_ABLATION leaves out any of the first four; its results are then wrong.
// With kTurns the warp groups multiply the other way than kTakeTurns says.
constexpr bool kTakeTurns = true;
enum LeftOut { kScales = 1, kStores = 2, kLaterCopies = 4, kPromotion = 8, kTurns = 64 };
#ifdef R1_FP8_ABLATION
__device__ inline bool leaves_out(const FP8Problem& in, LeftOut part) { return in.left_out & part; }
#else
__device__ inline bool leaves_out(const FP8Problem&, LeftOut) { return false; }
#endif

template <class Shape>
struct FP8Shared {
  static constexpr int kStages = Shape::kStages;
  // Copies begin at a multiple of 4 rows, which may be up to 3 rows early.
  static constexpr int kScaleRows = Shape::kRows + 4;
  static constexpr int kScaleColumns = Shape::kByColumn ? Shape::kColumns : 4;

  struct Operands {
    unsigned char a[Shape::kRows * kTileBlock], b[Shape::kColumns * kTileBlock];
  };
  unsigned char staged[2][Shape::kPanels][kPanelBytes];  // at a multiple of 1024, like the codes
  Operands codes[kStages];
  alignas(16) float a_scale[kStages][kScaleRows];
  alignas(16) float b_scale[kStages][kScaleColumns];
  Barrier full[kStages], empty[kStages];
  Tile tiles[kTiles];  // after the last one, one with -1 blocks
  Barrier tile_full[kTiles], tile_empty[kTiles];

  __device__ static FP8Shared& here() { return *reinterpret_cast<FP8Shared*>(dynamic_shared()); }
};

// A slot of the ring, and the parity of the turn it is in.
template <int kStages>
struct RingSlot {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// The copies of a tile's scales.
struct ScaleCopy {
  const float* from;  // of its first block
  uint32_t bytes;     // of each block

  __device__ ScaleCopy(const RowScales& scales, int64_t base, int row, int count, int first_block) {
    const int begin = row / 4 * 4;
    from = scales.values + base + first_block * scales.block_step + begin;
    bytes = max(0, min(count, scales.rows - begin)) * sizeof(float);
  }
};

// Rows of a or b of a tile; if both blocks of the cluster need them, half of them to both.
template <int kRows>
__device__ inline void bring_rows(unsigned char* to, const TensorMap& from, int row, int column,
                                  bool both, Barrier& full) {
  const int half = both ? (blockIdx.x & 1) * (kRows / 2) : 0;
  if (both) copy_tile_to_both(to + half * kTileBlock, from, row + half, column, full);
  else copy_tile(to, from, row, column, full);
}

template <class Shape, class Walk>
__device__ inline void bring(FP8Shared<Shape>& shared, const TensorMap& a, const TensorMap& b,
                             const FP8Problem& in, Walk walk) {
  using Shared = FP8Shared<Shape>;
  RingSlot<Shared::kStages> at;
  RingSlot<kTiles> tile_slot;
  bool later = false;
  for (bool more = true; more; tile_slot.advance()) {
    Tile tile;
    more = walk.next(tile);
    if (!more) tile.blocks = -1;
    shared.tile_empty[tile_slot.stage].wait(tile_slot.parity ^ 1);
    shared.tiles[tile_slot.stage] = tile;
    shared.tile_full[tile_slot.stage].arrive();
    ScaleCopy a_scale(in.a, 0, tile.row, Shared::kScaleRows, tile.first_block), b_scale = a_scale;
    if constexpr (Shape::kByColumn)
      b_scale = ScaleCopy(in.b, tile.b_scale, tile.column, Shape::kColumns, tile.first_block);
    else b_scale.bytes = 0;
    if (leaves_out(in, kScales)) a_scale.bytes = b_scale.bytes = 0;
    const uint32_t bytes = sizeof(typename Shared::Operands) + a_scale.bytes + b_scale.bytes;
    for (int block = 0; block < tile.blocks; ++block, at.advance()) {
      Barrier& full = shared.full[at.stage];
      auto& codes = shared.codes[at.stage];
      const int column = (tile.first_block + block) * kTileBlock;
      shared.empty[at.stage].wait(at.parity ^ 1);
      if (later && leaves_out(in, kLaterCopies)) {
        full.arrive();
        continue;
      }
      full.arrive_and_expect(bytes);
      bring_rows<Shape::kRows>(codes.a, a, tile.row, column, in.pairs.columns == 2, full);
      bring_rows<Shape::kColumns>(codes.b, b, tile.b_row, column, in.pairs.rows == 2, full);
      if (a_scale.bytes > 0)
        copy_bytes(shared.a_scale[at.stage], a_scale.from + block * in.a.block_step, a_scale.bytes,
                   full);
      if (Shape::kByColumn && b_scale.bytes > 0)
        copy_bytes(shared.b_scale[at.stage], b_scale.from + block * in.b.block_step, b_scale.bytes,
                   full);
      later = true;
    }
  }
}

// Tells the compiler that a warp agrees on it.
__device__ inline int of_first_lane(int x) { return __shfl_sync(0xffffffff, x, 0); }

// The scales of a tile's columns, where they change at multiples of 128 columns alone: a tile lies in
// one or two such squares. Each is read a block before it is needed.
template <class Shape>
class SquareScales {
 public:
  static constexpr int kSquares = Shape::kColumns > 128 ? 2 : 1;
  float now[kSquares];  // of the block at hand

  __device__ void start(const FP8Problem& in, const Tile& tile) {
#pragma unroll
    for (int s = 0; s < kSquares; ++s) {
      at_[s] = in.squares.of(tile.b_scale, min(tile.column + 128 * s, in.b_rows - 1),
                             tile.first_block);
      if (tile.blocks > 0) next_[s] = *at_[s];
    }
  }
  __device__ void advance(const FP8Problem& in, bool more) {
#pragma unroll
    for (int s = 0; s < kSquares; ++s) {
      now[s] = next_[s];
      if (more) next_[s] = *(at_[s] += in.squares.block_step);
    }
  }

 private:
  const float* at_[kSquares];
  float next_[kSquares];
};

// sums += product · its scales, of two rows and all columns, which may begin in the middle of a
// square.
template <int kSums, int kSquares>
__device__ inline void promote(float (&sums)[kSums], const float (&product)[kSums],
                               const float (&of_row)[2], const float (&of_square)[kSquares],
                               bool in_middle) {
#pragma unroll
  for (int part = 0; part < kSums / 32; ++part) {  // 64 columns
    const int square = kSquares == 1 ? 0 : part / 2;
    float scale = of_square[square];
    if (kSquares == 2 && part == 1 && in_middle) scale = of_square[kSquares - 1];
#pragma unroll
    for (int i = 32 * part; i < 32 * part + 32; ++i)
      sums[i] = fmaf(product[i], of_row[i / 2 % 2] * scale, sums[i]);
  }
}

// The same, with scales of each column.
template <int kSums>
__device__ inline void promote(float (&sums)[kSums], const float (&product)[kSums],
                               const float (&of_row)[2], const float (&of_column)[kSums / 2]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i)
    sums[i] = fmaf(product[i], of_row[i / 2 % 2] * of_column[i / 4 * 2 + i % 2], sums[i]);
}

// Whose product is next. Without turns, the tensor cores change between the groups at each instruction,
// both are done at the same time, and nothing multiplies while both promote. A group gives its turn as
// soon as its product has been issued.
struct Turns {
  int group;
  bool taken;             // whether the groups take turns
  bool given_once = false;

  __device__ void take() {
    if (taken && (group == 1 || given_once)) wait_for_turn(group);
  }
  __device__ void pass() {
    if (taken) give_turn(1 - group);
    given_once = true;
  }
  // Each turn that was given is waited for.
  __device__ void end() {
    if (taken && group == 0 && given_once) wait_for_turn(0);
  }
};

// By a warp group, `group` being 0 or 1: it has every other 64 rows of a tile.
template <class Shape>
__device__ inline void multiply_tiles(FP8Shared<Shape>& shared, const TensorMap& to,
                                      const FP8Problem& in, int group) {
  constexpr int kHeights = Shape::kHeights, kSums = Shape::kSums;
  const int t = threadIdx.x % kWarpGroup, own_row = t / 32 * 16 + t % 32 / 4;
  RingSlot<Shape::kStages> at;
  Staging<Shape::kPanels> staging{shared.staged[group][0], group};
  SquareScales<Shape> squares;
  Turns turns{group, in.in_turns};
  RingSlot<kTiles> tile_slot;
  const auto here = [&]() -> const Tile& {
    shared.tile_full[tile_slot.stage].wait(tile_slot.parity);
    return shared.tiles[tile_slot.stage];
  };
  const Tile* tile = &here();
  if constexpr (!Shape::kByColumn) squares.start(in, *tile);
  for (int blocks; (blocks = of_first_lane(tile->blocks)) >= 0;) {
    float sums[kHeights][kSums] = {};
    const int first_row = tile->row % 4 + group * 64 + own_row;
    const bool in_middle = tile->column % 128 != 0;
    for (int block = 0; block < blocks; ++block, at.advance()) {
      const auto& codes = shared.codes[at.stage];
      if constexpr (!Shape::kByColumn) squares.advance(in, block + 1 < blocks);
      shared.full[at.stage].wait(at.parity);
      const float* a_scale = &shared.a_scale[at.stage][first_row];
#pragma unroll
      for (int p = 0; p < kHeights; ++p) {
        Product<Shape::kColumns> product;
        turns.take();
        product.start(codes.a + (2 * p + group) * 64 * kTileBlock, codes.b);
        turns.pass();
        const float of_row[2] = {a_scale[128 * p], a_scale[128 * p + 8]};
        float of_column[kSums / 2];
        if constexpr (Shape::kByColumn) {
          const float* b_scale = &shared.b_scale[at.stage][2 * (t % 4)];
#pragma unroll
          for (int j = 0; j < kSums / 4; ++j) {
            const auto two = *reinterpret_cast<const Pair<float>*>(b_scale + 8 * j);
            of_column[2 * j] = two.of[0], of_column[2 * j + 1] = two.of[1];
          }
        }
        product.finish();
        if (p == kHeights - 1) {
          __syncwarp();
          if (t % 32 < in.pairs.blocks()) shared.empty[at.stage].arrive_in(t % 32);
        }
        if (leaves_out(in, kPromotion)) continue;
        if constexpr (Shape::kByColumn) promote(sums[p], product.of, of_row, of_column);
        else promote(sums[p], product.of, of_row, squares.now, in_middle);
      }
    }
    const Tile& done = *tile;
    Barrier& given_back = shared.tile_empty[tile_slot.stage];
    tile_slot.advance();
    tile = &here();
    if constexpr (!Shape::kByColumn) squares.start(in, *tile);
#pragma unroll
    for (int p = 0; p < kHeights; ++p) {
      const int row = done.row + (2 * p + group) * 64;
      if (row >= done.end_row || leaves_out(in, kStores)) continue;
      if (in.out.bias != nullptr) add_bias(in.out, done.column + 2 * (t % 4), sums[p]);
      const bool whole = row + kPanelRows <= done.end_row || done.out_row + done.end_row == in.out.rows;
      if (in.out.in_tiles && whole)
        staging.store(in.out, to, done.out_row + row, done.column, sums[p]);
      else store_rows(in.out, done, row + own_row, sums[p]);
    }
    given_back.arrive();  // each thread has read the tile for itself
  }
  turns.end();
  if (t == 0) wait_for_stores();
}

template <class Shape, class Walk>
__global__ void __launch_bounds__(kFP8Threads, 1)
    fp8_product(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                const __grid_constant__ TensorMap to, const FP8Problem in, const Walk walk) {
  using Shared = FP8Shared<Shape>;
  Shared& shared = Shared::here();
  if (threadIdx.x == 0) {
    trap_unless(reinterpret_cast<uintptr_t>(&shared) % 1024 == 0);
    prefetch(a), prefetch(b), prefetch(to);
    for (int s = 0; s < Shared::kStages; ++s) {
      shared.full[s].start(1);                                         // and bytes
      shared.empty[s].start(in.pairs.blocks() * 2 * kWarpGroup / 32);  // each warp that multiplies
    }
    for (int s = 0; s < kTiles; ++s) {
      shared.tile_full[s].start(1);
      shared.tile_empty[s].start(2 * kWarpGroup);
    }
    publish_barriers();
  }
  sync_cluster(in.pairs.blocks());
  wait_for_earlier_kernels();
  let_later_kernels_start();
  const int group = of_first_lane(threadIdx.x / kWarpGroup);
  if (group == 0) {
    give_up_registers<Shape::kFewRegisters>();
    if (threadIdx.x == 0) bring(shared, a, b, in, walk);
  } else {
    take_registers<Shape::kManyRegisters>();
    multiply_tiles(shared, to, in, group - 1);
  }
  // A block that is gone takes no arrivals.
  if (in.pairs.blocks() > 1) {
    cluster_arrive();
    cluster_wait();
  }
}
}  // namespace r1
