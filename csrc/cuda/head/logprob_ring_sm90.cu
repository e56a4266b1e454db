// logprob on sm_90 for many rows: one block a multiprocessor goes from row to row. One thread copies
// chunk after chunk into a ring in shared memory and never waits for the end of a row, so that memory
// has something to do at all times; sixteen warps work on what has arrived; one more ends the rows.
#include "cuda/common/hopper.h"
#include "cuda/head/logprob_sm90.h"

namespace r1 {
namespace {
constexpr int kStages = 6;          // chunks of the ring
constexpr int kSlot = kChunk + 16;  // bytes of one: with the unit that a skewed chunk ends in
constexpr int kThreads = kSliceThreads + 2 * kWarp;
enum Role { kCopies = kSliceWarps, kEnds };  // of the last two warps

// The slot in a ring of kSize that all who use it pass in the same order.
template <int kSize>
struct Turn {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void next() {
    if (++slot == kSize) slot = 0, parity ^= 1;
  }
};

// Work goes from who fills a slot to who empties it.
struct Handover {
  Barrier full, empty;

  __device__ void start(int fillers, int emptiers) {
    full.start(fillers);
    empty.start(emptiers);
  }
};

template <bool kWeighted>
struct Shared {
  Handover chunks[kStages];
  Handover rows[2];
  Statistics<kWeighted> warps[2][kSliceWarps];  // of a row while the next one is worked on

  static constexpr int kSize = 1024;  // the ring begins behind it
};

template <bool kWeighted>
__device__ unsigned char* slot(int index) {
  return dynamic_shared() + Shared<kWeighted>::kSize + index * kSlot;
}

// Calls body(slice, first group, last group) for the chunks of a row in their order.
template <class Body>
__device__ inline void for_chunks(const Slices& slices, int slice, const Body& body) {
  const int begin = slices.begin(slice), end = begin + slices.size(slice);
  for (int first = begin; first < end; first += kChunk / 16)
    body(first, min(first + kChunk / 16, end));
}

template <class T, bool kWeighted>
__device__ void copy_rows(const LogprobForward& in, const Slices& slices,
                          Shared<kWeighted>& shared) {
  Turn<kStages> turn;
  for (int64_t t = blockIdx.x; t < in.rows; t += gridDim.x)
    for (int slice = 0; slice < slices.count; ++slice)
      for_chunks(slices, slice, [&](int first, int last) {
        const Units<T> units(in.row<T>(t), first, last);
        Handover& chunk = shared.chunks[turn.slot];
        chunk.empty.wait(turn.parity ^ 1);
        chunk.full.arrive_and_expect(units.bytes);
        copy_bytes(slot<kWeighted>(turn.slot), units.from, units.bytes, chunk.full);
        turn.next();
      });
}

template <class T, bool kPlain, bool kWeighted>
__device__ void add_rows(const LogprobForward& in, const Slices& slices,
                         Shared<kWeighted>& shared) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  Turn<kStages> turn;
  Turn<2> row;
  RowScale<kPlain> scale(in.options, blockIdx.x);
  for (int64_t t = blockIdx.x; t < in.rows; t += gridDim.x) {
    const RowScale<kPlain> next(in.options, min(t + gridDim.x, in.rows - 1));  // no wait later
    auto all = Statistics<kWeighted>::none();
    for (int slice = 0; slice < slices.count; ++slice) {
      auto mine = Statistics<kWeighted>::none();
      for_chunks(slices, slice, [&](int first, int last) {
        Handover& chunk = shared.chunks[turn.slot];
        const int skew = Units<T>(in.row<T>(t), first, last).skew;
        chunk.full.wait(turn.parity);
        add_part<kSliceThreads>(mine, reinterpret_cast<const T*>(slot<kWeighted>(turn.slot) + skew),
                                last - first, scale, [](int) {});
        __syncwarp();
        if (lane == 0) chunk.empty.arrive();
        turn.next();
      });
      if (slice == 0) all = mine;
      else all.merge(mine, scale.log2_unit);
    }
    all.merge_lanes(scale.log2_unit);
    shared.rows[row.slot].empty.wait(row.parity ^ 1);
    if (lane == 0) {
      shared.warps[row.slot][warp] = all;
      shared.rows[row.slot].full.arrive();
    }
    row.next();
    scale = next;
  }
}

template <class T, bool kPlain, bool kWeighted>
__device__ void end_rows(const LogprobForward& in, Shared<kWeighted>& shared) {
  Turn<2> row;
  for (int64_t t = blockIdx.x; t < in.rows; t += gridDim.x) {
    RowEnd<kSliceWarps, T, kPlain, kWeighted> end(in, t);
    shared.rows[row.slot].full.wait(row.parity);
    end.finish(in, t, shared.warps[row.slot]);
    __syncwarp();
    if (threadIdx.x % kWarp == 0) shared.rows[row.slot].empty.arrive();
    row.next();
  }
}

template <class T, bool kPlain, bool kWeighted>
__global__ void __launch_bounds__(kThreads, 1) forward(LogprobForward in, Slices slices) {
  using Memory = Shared<kWeighted>;
  static_assert(sizeof(Memory) <= Memory::kSize);
  Memory& shared = *reinterpret_cast<Memory*>(dynamic_shared());
  if (threadIdx.x == 0) {
    for (Handover& chunk : shared.chunks) chunk.start(1, kSliceWarps);
    for (Handover& row : shared.rows) row.start(kSliceWarps, 1);
    publish_barriers();
  }
  __syncthreads();
  const int role = threadIdx.x / kWarp;
  if (role == kEnds) end_rows<T, kPlain>(in, shared);
  else if (role != kCopies) add_rows<T, kPlain>(in, slices, shared);
  else if (threadIdx.x % kWarp == 0) copy_rows<T>(in, slices, shared);
}
}  // namespace

void logprob_on_ring(const OnDevice& device, const LogprobForward& in, const Slices& slices) {
  with_kernel(in, [&](auto element, auto plain, auto weighted) {
    const int shared = Shared<weighted.value>::kSize + kStages * kSlot;
    device.launch_clusters("logprob", forward<decltype(element), plain.value, weighted.value>,
                           dim3(device.multiprocessors()), kThreads, 1, shared, in, slices);
  });
}
}  // namespace r1
