// logprob on sm_90 for few rows: a cluster of blocks a row, so that they keep the whole GPU busy. Each
// block asks for its slice of the row at once, by bulk copies into shared memory that need no
// registers, and works on what has arrived; the statistics meet in the first block.
#include "cuda/common/hopper.h"
#include "cuda/head/logprob_sm90.h"

namespace r1 {
namespace {
constexpr int kBlocks = 8;            // in a cluster at most: what every device can do
constexpr int kSliceTarget = 40 << 10;  // bytes, for several blocks on a multiprocessor
constexpr int kSliceLimit = 180 << 10;  // one block's share beside what it gets from the others

template <bool kWeighted>
struct Shared {
  Barrier arrived[kSliceLimit / kChunk];
  Statistics<kWeighted> warps[kSliceWarps];

  // Behind it lie, in the first block, the statistics of the other slices' threads.
  static constexpr int kSize = 512, kPerSlice = kSliceThreads * sizeof(Statistics<kWeighted>);
  __device__ Statistics<kWeighted>* of_slice(int slice) {
    return reinterpret_cast<Statistics<kWeighted>*>(dynamic_shared() + kSize +
                                                    (slice - 1) * kPerSlice);
  }
};

template <class T, bool kPlain, bool kWeighted>
__global__ void __launch_bounds__(kSliceThreads, 2) forward(LogprobForward in, Slices slices) {
  cluster_announce();
  using Memory = Shared<kWeighted>;
  static_assert(sizeof(Memory) <= Memory::kSize && Memory::kPerSlice % 128 == 0);
  Memory& shared = *reinterpret_cast<Memory*>(dynamic_shared());
  unsigned char* staged = dynamic_shared() + Memory::kSize + (slices.count - 1) * Memory::kPerSlice;
  const int rank = cluster_rank(), count = slices.size(rank);
  const int64_t t = blockIdx.x / slices.count;
  const Units<T> all(in.row<T>(t), slices.begin(rank), slices.begin(rank) + count);
  if (threadIdx.x == 0) {
    const int chunks = (count * 16 + kChunk - 1) / kChunk, pad = all.bytes - count * 16;
    for (int c = 0; c < chunks; ++c) shared.arrived[c].start(1);
    publish_barriers();
    for (int c = 0; c < chunks; ++c) {
      const int from = c == 0 ? 0 : c * kChunk + pad;
      const int to = min((c + 1) * kChunk + pad, all.bytes);
      shared.arrived[c].arrive_and_expect(to - from);
      copy_bytes(staged + from, all.from + from, to - from, shared.arrived[c]);
    }
  }
  RowEnd<kSliceWarps, T, kPlain, kWeighted> end(in, t);
  __syncwarp();  // the copying thread and those of the row's end are behind the others
  __syncthreads();  // the barriers are ready
  auto mine = Statistics<kWeighted>::none();
  add_part<kSliceThreads>(mine, reinterpret_cast<const T*>(staged + all.skew), count, end.scale,
                          [&](int g) { shared.arrived[g / (kChunk / 16)].wait(0); });
  cluster_wait();  // a block's memory is there from its start until its end
  if (rank != 0) *in_block(shared.of_slice(rank) + threadIdx.x, 0) = mine;
  cluster_arrive();
  cluster_wait();
  if (rank != 0) return;
  for (int slice = 1; slice < slices.count; ++slice)
    mine.merge(shared.of_slice(slice)[threadIdx.x], end.scale.log2_unit);
  mine.merge_lanes(end.scale.log2_unit);
  if (threadIdx.x % kWarp == 0) shared.warps[threadIdx.x / kWarp] = mine;
  __syncthreads();
  if (threadIdx.x < kWarp) end.finish(in, t, shared.warps);
}
}  // namespace

void logprob_on_clusters(const OnDevice& device, const LogprobForward& in, const Slices& slices) {
  with_kernel(in, [&](auto element, auto plain, auto weighted) {
    using Memory = Shared<weighted.value>;
    const int before = Memory::kSize + (slices.count - 1) * Memory::kPerSlice;
    const int shared = before + slices.per_slice * 16 + 16;
    device.launch_clusters("logprob", forward<decltype(element), plain.value, weighted.value>,
                           dim3(in.rows * slices.count), kSliceThreads, slices.count, shared, in,
                           slices);
  });
}

bool logprob_on_sm90(const OnDevice& device, const LogprobForward& in) {
  const int64_t bytes = in.columns * (in.bf16 ? 2 : 4), groups = bytes / 16;
  int count = 1;
  while (count < kBlocks && bytes > int64_t{count} * kSliceTarget) count *= 2;
  const int64_t per_slice = (groups + count - 1) / count;
  if (per_slice * 16 > kSliceLimit) return false;
  const Slices slices{count, static_cast<int>(groups), static_cast<int>(per_slice)};
  const bool fill_the_ring = bytes >= kChunk && in.rows >= 2 * device.multiprocessors();
  (fill_the_ring ? logprob_on_ring : logprob_on_clusters)(device, in, slices);
  return true;
}
}  // namespace r1
