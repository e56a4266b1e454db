// How a warp group stores sums without waiting: it puts them into shared memory, from where bulk copies
// bring them to the output while the group is busy with its next tile.
#pragma once

#include "cuda/fp8/tile.h"

namespace r1 {
// 64 rows of 128 bytes of the output, laid out as store_tile takes them.
constexpr int kPanelRows = 64, kPanelBytes = kPanelRows * 128;

// A warp group's panels in shared memory.
template <int kPanels>
struct Staging {
  unsigned char* panels;  // at a multiple of 1024
  int group;              // among those that multiply
  int used = 0;           // panels that stores may still read

  // Rows of the output from `row` on, which `to` describes, of all of the group's threads.
  template <int kSums>
  __device__ void store(const FP8Output& out, const TensorMap& to, int row, int column,
                        const float (&sums)[kSums]) {
    if (out.type == FP8Output::kFloat32) store_as<true>(out, to, row, column, sums);
    else store_as<false>(out, to, row, column, sums);
  }

 private:
  // As many panels at a time as there may be.
  template <bool kWide, int kSums>
  __device__ void store_as(const FP8Output& out, const TensorMap& to, int row, int column,
                           const float (&sums)[kSums]) {
    constexpr int kOfPanel = kWide ? 32 : 64, kNeeded = 2 * kSums / kOfPanel;
    constexpr int kEach = kNeeded < kPanels ? kNeeded : kPanels;
    const bool leads = threadIdx.x % kWarpGroup == 0;
#pragma unroll
    for (int first = 0; first < kNeeded; first += kEach) {
      if (used + kEach > kPanels) {
        if (leads) wait_for_reads_of_stores();
        sync_group(group);
        used = 0;
      }
      unsigned char* here = panels + used * kPanelBytes;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (first + i == kNeeded) break;
        if constexpr (kWide) put_wide(here + i * kPanelBytes, &sums[(first + i) * kOfPanel / 2]);
        else
          put_rounded(here + i * kPanelBytes, &sums[(first + i) * kOfPanel / 2],
                      out.type == FP8Output::kBFloat16);
      }
      publish_arrivals();
      sync_group(group);
      if (leads) {
        for (int i = 0; i < kEach && first + i < kNeeded; ++i) {
          const int from = column + (first + i) * kOfPanel;
          if (from < out.columns) store_tile(to, here + i * kPanelBytes, row, from, out.adds);
        }
        commit_stores();
      }
      used += kEach;
    }
  }

  // Of a row of a panel, the group of 16 bytes that was to be at `group`.
  __device__ static unsigned char* at(unsigned char* panel, int row, int group) {
    return panel + row * 128 + (group ^ row % 8) * 16;
  }

  // The 64 or 32 columns of `sums` that a panel has.
  __device__ static void put_rounded(unsigned char* panel, const float* sums, bool bf16) {
    const int lane = threadIdx.x % 32, row = threadIdx.x % kWarpGroup / 32 * 16 + lane % 16;
#pragma unroll
    for (int j = 0; j < 8; j += 2) {  // 16 rows and 16 columns
      uint32_t words[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const float* two = &sums[4 * j + 2 * m];
        words[m] = bf16 ? pack_bf16(two[0], two[1]) : pack_half(two[0], two[1]);
      }
      store_matrices(at(panel, row, j + lane / 16), words);
    }
  }
  __device__ static void put_wide(unsigned char* panel, const float* sums) {
    const int lane = threadIdx.x % 32, row = threadIdx.x % kWarpGroup / 32 * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        unsigned char* there = at(panel, row + 8 * h, j * 2 + lane % 4 / 2) + lane % 2 * 8;
        const float* two = &sums[4 * j + 2 * h];
        *reinterpret_cast<Pair<float>*>(there) = {two[0], two[1]};
      }
    }
  }
};
}  // namespace r1
