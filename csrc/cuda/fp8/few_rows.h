// x·wᵀ of at most 128 rows of x: what takes the time is to read the weight once. Tiles are of 64 rows of
// the weight, which the tensor cores take as rows, and the rows of x as columns; one thread keeps a
// deep ring of copies full. Blocks of the reduction are promoted one after the other as in
// fp8_product.h, so a row has the same bits whichever of the two kernels makes it.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/common/elements.h"
#include "cuda/fp8/product.h"

namespace r1 {
constexpr int kFewRows = 128, kFewThreads = kWarpGroup + 32;
constexpr int kWeightRows = 64;  // of a tile

// Of x, kRows at most: codes [rows, K], scales [⌈K/128⌉, kRows].
struct FewRows {
  const float* x_scale;
  FP8Scales weight_scale;
  void* out;         // [rows, columns]
  const void* bias;  // [columns], or null, of the output's type
  bool bf16;         // that type, else float32
  int rows, columns;
  int blocks;  // of the reduction, one at least
  bool in_pairs;  // two bf16 neighbours of `out` lie in one aligned unit
};

template <int kRows>
struct FewRowsShared {
  static constexpr int kStages = kRows == 16 ? 20 : kRows == 64 ? 12 : 7;  // as many as there is room
  static constexpr int kWeightBytes = kWeightRows * kTileBlock, kXBytes = kRows * kTileBlock;
  static constexpr int kBytes = kWeightBytes + kXBytes + kRows * sizeof(float);

  unsigned char weight[kStages][kWeightBytes];  // at a multiple of 1024
  unsigned char x[kStages][kXBytes];
  float x_scale[kStages][kRows];
  float out[kRows][kWeightRows + 1];
  Barrier full[kStages], empty[kStages];

  static constexpr int kRoom = 1024;  // to reach such a multiple
  __device__ static FewRowsShared& here() {
    unsigned char* from = dynamic_shared();
    return *reinterpret_cast<FewRowsShared*>(from + -reinterpret_cast<uintptr_t>(from) % kRoom);
  }
};

// By one thread. The kernel before this one, which quantizes x, started when all earlier ones were done,
// and does not make the weight: the first blocks of that are asked for at once.
template <int kRows>
__device__ inline void bring_few(FewRowsShared<kRows>& shared, const TensorMap& weight,
                                 const TensorMap& x, const FewRows& in) {
  constexpr int kStages = FewRowsShared<kRows>::kStages;
  const auto bring_weight = [&](int stage, int tile, int block) {
    shared.full[stage].arrive_and_expect(FewRowsShared<kRows>::kBytes);
    copy_tile(shared.weight[stage], weight, tile * kWeightRows, block * kTileBlock,
              shared.full[stage]);
  };
  const auto bring_x = [&](int stage, int block) {
    copy_tile(shared.x[stage], x, 0, block * kTileBlock, shared.full[stage]);
    copy_bytes(shared.x_scale[stage], in.x_scale + block * kRows, kRows * sizeof(float),
               shared.full[stage]);
  };
  const int first = min(kStages, in.blocks);
  for (int s = 0; s < first; ++s) bring_weight(s, blockIdx.x, s);
  wait_for_earlier_kernels();
  for (int s = 0; s < first; ++s) bring_x(s, s);
  int stage = first % kStages, block = first;
  uint32_t parity = first == kStages;
  for (int tile = blockIdx.x; tile * kWeightRows < in.columns; tile += gridDim.x, block = 0)
    for (; block < in.blocks; ++block) {
      shared.empty[stage].wait(parity ^ 1);
      bring_weight(stage, tile, block);
      bring_x(stage, block);
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
}

// The scales of a tile's rows of the weight, one for all of them in each block: a lane has that of
// every 32nd block, and the next ones are on their way.
class WeightScales {
 public:
  __device__ void start(const FewRows& in, int row) {
    row_ = row;
    ahead_ = load(in, threadIdx.x % 32);
  }
  __device__ float of(const FewRows& in, int block) {
    if (block % 32 == 0) now_ = ahead_, ahead_ = load(in, block + 32 + threadIdx.x % 32);
    return __shfl_sync(0xffffffff, now_, block % 32);
  }

 private:
  __device__ float load(const FewRows& in, int block) const {
    return block < in.blocks ? *in.weight_scale.of(0, row_, block) : 0.0f;
  }

  int row_;
  float now_, ahead_;
};

__device__ inline float element(const void* from, bool bf16, int at) {
  return bf16 ? to_float(static_cast<const uint16_t*>(from)[at])
              : static_cast<const float*>(from)[at];
}
__device__ inline void put_element(void* to, bool bf16, int64_t at, float x) {
  if (bf16) from_float(static_cast<uint16_t*>(to)[at], x);
  else static_cast<float*>(to)[at] = x;
}

// A warp has every fourth row of the output, a lane two neighbours in it.
template <int kRows>
__device__ inline void store_few(const FewRowsShared<kRows>& shared, const FewRows& in, int column) {
  const int lane = threadIdx.x % 32, first = column + 2 * lane;
  float bias[2] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i)
    if (in.bias != nullptr && first + i < in.columns) bias[i] = element(in.bias, in.bf16, first + i);
  for (int row = threadIdx.x / 32; row < in.rows; row += kWarpGroup / 32) {
    const float* from = &shared.out[row][2 * lane];
    const float two[2] = {from[0] + bias[0], from[1] + bias[1]};
    const int64_t at = int64_t{row} * in.columns + first;
    if (in.bf16 && in.in_pairs && first < in.columns) {
      static_cast<uint32_t*>(in.out)[at / 2] = pack_bf16(two[0], two[1]);
      continue;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (first + i < in.columns) put_element(in.out, in.bf16, at + i, two[i]);
  }
}

// By a warp group.
template <int kRows>
__device__ inline void multiply_few(FewRowsShared<kRows>& shared, const FewRows& in) {
  const int t = threadIdx.x, own_row = t / 32 * 16 + t % 32 / 4, own_column = 2 * (t % 4);
  RingSlot<FewRowsShared<kRows>::kStages> at, coming;
  WeightScales weight_scales;
  for (int column = blockIdx.x * kWeightRows; column < in.columns; column += gridDim.x * kWeightRows) {
    float sums[kRows / 2] = {};
    weight_scales.start(in, column);
    Product<kRows> products[2];  // of blocks in turn: while one is promoted, the next is made
    const auto start = [&](Product<kRows>& product) {
      shared.full[coming.stage].wait(coming.parity);
      product.start(shared.weight[coming.stage], shared.x[coming.stage]);
      coming.advance();
    };
    const auto promote = [&](Product<kRows>& product, int block, auto later) {
      const float of_weight = weight_scales.of(in, block);
      float of_x[kRows / 4];
#pragma unroll
      for (int j = 0; j < kRows / 8; ++j) {
        const float* scale = &shared.x_scale[at.stage][8 * j + own_column];
        const auto two = *reinterpret_cast<const Pair<float>*>(scale);
        of_x[2 * j] = two.of[0] * of_weight, of_x[2 * j + 1] = two.of[1] * of_weight;
      }
      product.template finish<decltype(later)::value>();
      __syncwarp();
      if (t % 32 == 0) shared.empty[at.stage].arrive();
      at.advance();
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i)
        sums[i] = fmaf(product.of[i], of_x[i / 4 * 2 + i % 2], sums[i]);
    };
    constexpr std::integral_constant<int, 0> none;
    constexpr std::integral_constant<int, 1> one;
    int block = 0;
    start(products[0]);
    for (; block + 2 < in.blocks; block += 2) {
      start(products[1]);
      promote(products[0], block, one);
      start(products[0]);
      promote(products[1], block + 1, one);
    }
    if (block + 1 < in.blocks) {
      start(products[1]);
      promote(products[0], block, one);
      promote(products[1], block + 1, none);
    } else {
      promote(products[0], block, none);
    }
    sync_group(0);  // the last tile is stored
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i)
      shared.out[i / 4 * 8 + own_column + i % 2][own_row + i / 2 % 2 * 8] = sums[i];
    sync_group(0);
    store_few(shared, in, column);
  }
}

template <int kRows>
__global__ void __launch_bounds__(kFewThreads, 1)
    fp8_few_rows(const __grid_constant__ TensorMap weight, const __grid_constant__ TensorMap x,
                 const FewRows in) {
  using Shared = FewRowsShared<kRows>;
  Shared& shared = Shared::here();
  if (threadIdx.x == kWarpGroup) {
    prefetch(weight), prefetch(x);
    for (int s = 0; s < Shared::kStages; ++s) {
      shared.full[s].start(1);                  // and bytes
      shared.empty[s].start(kWarpGroup / 32);  // each warp that multiplies
    }
    publish_barriers();
  }
  __syncthreads();
  let_later_kernels_start();
  // Of one lane, which tells the compiler that a warp agrees on it.
  if (__shfl_sync(0xffffffff, threadIdx.x / 32, 0) == kWarpGroup / 32) {
    if (threadIdx.x == kWarpGroup) bring_few(shared, weight, x, in);
  } else {
    multiply_few(shared, in);
  }
}
}  // namespace r1
