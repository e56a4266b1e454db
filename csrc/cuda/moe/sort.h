// A stable counting sort of slots by expert (r1kernels/moe/sort.py) within one launch, whose
// blocks run together: each warp counts a contiguous segment of the slots, all counts meet, and each
// warp ranks its segment. Ranks depend on (expert, slot) alone; the one thing that comes in any
// order is the addition of integers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "cuda/common/fresh.h"
#include "cuda/common/ptx.h"
#include "cuda/common/stream.h"

namespace r1 {
constexpr uint32_t kAllLanes = 0xffffffff;

struct Segment {
  int64_t begin, end;
};
// Items dealt to the warps of a launch, one after the other, as evenly as it goes.
struct Segments {
  int64_t each, rest;

  Segments(int64_t items, int64_t warps) : each(items / warps), rest(items % warps) {}
  __device__ Segment of(int64_t warp) const {
    const int64_t begin = warp * each + min(warp, rest);
    return {begin, begin + each + (warp < rest)};
  }
};

struct MoeSort {
  const int64_t* ids;  // [slots]
  int64_t slots, rows;
  int experts, align;
  int32_t *counts, *offsets, *gather, *inverse;
  int32_t* histograms;  // [blocks, experts]: workspace
};

template <int kThreads>
class BlockSort {
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kPerExpert = kWarps + 3;  // integers in shared memory

 public:
  static int shared_bytes(int experts) { return (kPerExpert * experts + 1) * sizeof(int); }

  __device__ explicit BlockSort(const MoeSort& in)
      : in_(in), next_rows_(reinterpret_cast<int*>(dynamic_shared())),
        mine_(next_rows_ + threadIdx.x / 32 * in.experts), total_(next_rows_ + kWarps * in.experts),
        before_(total_ + in.experts), offsets_(before_ + in.experts) {
    for (int i = threadIdx.x; i < (kWarps + 2) * in.experts; i += kThreads) next_rows_[i] = 0;
    __syncthreads();
  }

  // A slot of the warp's segment goes to this expert.
  __device__ void add(int expert) const { atomicAdd(mine_ + expert, 1); }

  // After all slots were added; called by the whole block.
  __device__ void scatter(Segment slots) const {
    __syncthreads();
    count_block();
    sync_grid();
    add_up_blocks();
    __syncthreads();
    if (threadIdx.x < 32) lay_out();
    __syncthreads();
    for (int e = threadIdx.x; e < in_.experts; e += kThreads)
      for (int w = 0; w < kWarps; ++w) next_rows_[w * in_.experts + e] += offsets_[e] + before_[e];
    if (blockIdx.x == 0) write_counts();
    write_gaps();
    __syncthreads();
    rank(slots);
  }

 private:
  // From the counts of warps to where each begins within the block.
  __device__ void count_block() const {
    for (int e = threadIdx.x; e < in_.experts; e += kThreads) {
      int sum = 0;
      for (int w = 0; w < kWarps; ++w) {
        const int count = next_rows_[w * in_.experts + e];
        next_rows_[w * in_.experts + e] = sum;
        sum += count;
      }
      in_.histograms[int64_t{blockIdx.x} * in_.experts + e] = sum;
    }
  }

  __device__ void add_up_blocks() const {
    const int parts = max(1, kThreads / in_.experts), blocks = gridDim.x, here = blockIdx.x;
    for (int i = threadIdx.x; i < parts * in_.experts; i += kThreads) {
      const int e = i % in_.experts;
      int total = 0, before = 0;
#pragma unroll 8
      for (int b = i / in_.experts; b < blocks; b += parts) {
        const int count = in_.histograms[int64_t{b} * in_.experts + e];
        total += count;
        before += b < here ? count : 0;
      }
      atomicAdd(total_ + e, total);
      atomicAdd(before_ + e, before);
    }
  }

  // One warp: each lane the offsets of a run of experts.
  __device__ void lay_out() const {
    const int lane = threadIdx.x, run = (in_.experts + 31) / 32;
    const int first = min(lane * run, in_.experts), last = min(first + run, in_.experts);
    auto room = [&](int e) { return (total_[e] + in_.align - 1) / in_.align * in_.align; };
    int own = 0;
    for (int e = first; e < last; ++e) own += room(e);
    int end = own;
    for (int by = 1; by < 32; by *= 2) {
      const int earlier = __shfl_up_sync(kAllLanes, end, by);
      end += lane >= by ? earlier : 0;
    }
    int at = end - own;
    for (int e = first; e < last; ++e) {
      offsets_[e] = at;
      at += room(e);
    }
    if (lane == 31) offsets_[in_.experts] = end;
  }

  __device__ void write_counts() const {
    for (int e = threadIdx.x; e <= in_.experts; e += kThreads) {
      in_.offsets[e] = offsets_[e];
      if (e < in_.experts) in_.counts[e] = total_[e];
    }
  }

  // The rows without a slot: at the end of each expert's, and after the last expert's.
  __device__ void write_gaps() const {
    const int warps = gridDim.x * kWarps, lane = threadIdx.x % 32;
    for (int e = blockIdx.x * kWarps + threadIdx.x / 32; e < in_.experts; e += warps)
      for (int row = offsets_[e] + total_[e] + lane; row < offsets_[e + 1]; row += 32)
        in_.gather[row] = -1;
    const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
    for (int64_t row = offsets_[in_.experts] + thread; row < in_.rows; row += warps * 32)
      in_.gather[row] = -1;
  }

  // Of the slots in a warp's hands, those of an expert take its next rows in the order of lanes.
  __device__ void rank(Segment slots) const {
    const int lane = threadIdx.x % 32;
    const uint32_t below = (uint32_t{1} << lane) - 1;
    for (int64_t first = slots.begin; first < slots.end; first += 32) {
      const int64_t slot = first + lane;
      const int64_t id = slot < slots.end ? in_.ids[slot] : -1;
      const bool there = id >= 0 && id < in_.experts;
      const int expert = there ? static_cast<int>(id) : in_.experts;
      const uint32_t same = __match_any_sync(kAllLanes, expert);
      const int row = there ? mine_[expert] + __popc(same & below) : -1;
      __syncwarp();
      if (there && (same & below) == 0) mine_[expert] += __popc(same);
      __syncwarp();
      if (there) in_.gather[row] = static_cast<int32_t>(slot);
      if (slot < slots.end) in_.inverse[slot] = row;
    }
  }

  const MoeSort& in_;
  int* next_rows_;                   // [warps, experts]: counts, then next rows
  int* mine_;                        // the warp's
  int *total_, *before_, *offsets_;  // rows of each expert, those of earlier blocks, [E + 1]
};

constexpr int kMaxExperts = 1024;

inline void check_sort(const char* op, int64_t experts, int64_t align) {
  R1_CHECK(experts >= 1 && experts <= kMaxExperts, op, ": num_experts: expected 1 to ",
           kMaxExperts, ", got ", experts);
  R1_CHECK(align >= 1 && align <= INT32_MAX, op, ": align: expected 1 or more, got ", align);
}

// Blocks of a launch together: one for every `items_per_block` items, one a multiprocessor at most.
inline int blocks_for(const OnDevice& device, int64_t items, int items_per_block) {
  return static_cast<int>(
      std::clamp<int64_t>((items + items_per_block - 1) / items_per_block, 1,
                          device.multiprocessors()));
}

// The outputs of moe_sort for the slots of ids [T, k], not yet written.
struct SortTensors {
  Tensor counts, offsets, gather, inverse, histograms;

  static SortTensors of(const char* op, const Tensor& ids, int64_t experts, int64_t align,
                        int blocks) {
    const int64_t slots = ids.numel();
    const int64_t rows = align == 1 ? slots
                                    : (slots + std::min(slots, experts) * (align - 1)) / align * align;
    R1_CHECK(rows <= INT32_MAX, op, ": ids: expected rows for at most 2^31 - 1 slots, got ", rows);
    auto make = [&](std::initializer_list<int64_t> sizes) {
      return fresh(ids, sizes, ScalarType::Int);
    };
    return {make({experts}), make({experts + 1}), make({rows}), make({ids.size(0), ids.size(1)}),
            make({blocks, experts})};
  }

  static SortTensors none(const Tensor& ids) {
    auto empty = [&] { return fresh(ids, {0}, ScalarType::Int); };
    return {empty(), empty(), empty(), empty(), empty()};
  }

  MoeSort of(const Tensor& ids, int64_t align) const {
    return {data<int64_t>(ids), ids.numel(), gather.numel(), static_cast<int>(counts.numel()),
            static_cast<int>(align), data<int32_t>(counts), data<int32_t>(offsets),
            data<int32_t>(gather), data<int32_t>(inverse), data<int32_t>(histograms)};
  }
};
}  // namespace r1
