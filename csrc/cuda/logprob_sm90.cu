// logprob on sm_90: a cluster of blocks a row, so that few rows keep the whole GPU busy. Each block
// asks for its slice of the row at once, by bulk copies into shared memory that need no registers,
// and works on what has arrived; the statistics meet in the first block.
#include "cuda/logprob.h"

namespace r1 {
namespace {
constexpr int kThreads = 256;
constexpr int kChunk = kBatch * kThreads * 16;  // bytes a copy: what the threads take in one turn
constexpr int kBlocks = 8;                      // in a cluster at most: what every device can do
constexpr int kSliceGoal = 40 << 10;            // bytes, for five blocks on a multiprocessor
constexpr int kSliceLimit = 208 << 10;          // what one block can have

struct Shared {
  Arrival arrived[kSliceLimit / kChunk];
  Statistics parts[kBlocks];  // used in the first block of a cluster
};
constexpr int kStaged = 256;  // where the slice begins
static_assert(sizeof(Shared) <= kStaged);

template <class T, bool kCapped>  // tanh takes the registers of the fifth block
__global__ void __launch_bounds__(kThreads, kCapped ? 4 : 5) forward(LogprobForward in) {
  cluster_announce();
  Shared& shared = *reinterpret_cast<Shared*>(dynamic_shared());
  unsigned char* staged = dynamic_shared() + kStaged;
  const int rank = cluster_rank(), blocks = cluster_size();
  const int64_t t = blockIdx.x / blocks;
  const T* x = in.row<T>(t);
  const int groups = in.columns / kGroup<T>, share = (groups + blocks - 1) / blocks;
  const int begin = min(rank * share, groups), count = min(share, groups - begin);
  const T* slice = x + int64_t{begin} * kGroup<T>;
  // A copy takes whole units of 16 bytes. Those that a slice only begins or ends in are inside the
  // allocation too, since that is made of such units.
  const int skew = reinterpret_cast<uintptr_t>(slice) % 16, pad = skew != 0 ? 16 : 0;
  if (threadIdx.x == 0) {
    const unsigned char* source = reinterpret_cast<const unsigned char*>(slice) - skew;
    const int bytes = count * 16, chunks = (bytes + kChunk - 1) / kChunk;
    for (int c = 0; c < chunks; ++c) shared.arrived[c].start();
    publish_arrivals();
    for (int c = 0; c < chunks; ++c) {
      const int from = c == 0 ? 0 : c * kChunk + pad, to = min((c + 1) * kChunk, bytes) + pad;
      shared.arrived[c].expect(to - from);
      bulk_copy(staged + from, source + from, to - from, shared.arrived[c]);
    }
  }
  const int64_t y = in.target[t];
  const RowScale<kCapped> scale(in.options, t);
  __syncthreads();  // the barriers are ready
  Statistics mine =
      over_groups<kThreads>(reinterpret_cast<const T*>(staged + skew), count, scale,
                            [&](int g) { shared.arrived[g / (kChunk / 16)].wait(); });
  if (rank == blocks - 1) add_rest(mine, x, in.columns, scale);
  const float own = rank == 0 && threadIdx.x == 0 ? in.own<T>(t, y) : 0.0f;
  mine = over_block<kThreads>(mine, scale.unit * kLog2E);
  cluster_wait();  // a block's memory is there from its start until its end
  if (threadIdx.x == 0) *in_block(&shared.parts[rank], 0) = mine;
  cluster_arrive();
  cluster_wait();
  if (rank != 0 || threadIdx.x != 0) return;
  for (int r = 1; r < blocks; ++r) mine.merge(shared.parts[r], scale.unit * kLog2E);
  in.finish(t, own, scale, mine);
}
}  // namespace

bool logprob_on_clusters(const OnDevice& device, const LogprobForward& in) {
  const int64_t bytes = in.columns * (in.bf16 ? 2 : 4);
  int blocks = 1;
  while (blocks < kBlocks && bytes > int64_t{blocks} * kSliceGoal) blocks *= 2;
  const int64_t slice = ((bytes / 16 + blocks - 1) / blocks) * 16;
  if (slice > kSliceLimit) return false;
  with_kernel(in.bf16, in.options, [&](auto element, auto capped) {
    device.launch_clusters("logprob", forward<decltype(element), decltype(capped)::value>,
                           dim3(in.rows * blocks), kThreads, blocks, kStaged + slice + 16, in);
  });
  return true;
}
}  // namespace r1
