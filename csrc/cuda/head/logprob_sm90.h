// What the two forward kernels of logprob for sm_90 agree on, so that a row comes out the same bit for
// bit: the row's slices, whose statistics each thread makes and then merges in their order.
#pragma once

#include "cuda/head/logprob.h"

namespace r1 {
constexpr int kSliceThreads = 512, kSliceWarps = kSliceThreads / kWarp;
constexpr int kChunk = kBatch * kSliceThreads * 16;  // bytes a copy: what the threads take in a turn

// Of the whole groups of a row; they depend on V alone.
struct Slices {
  int count, groups, per_slice;

  __device__ int begin(int slice) const { return min(slice * per_slice, groups); }
  __device__ int size(int slice) const { return min(per_slice, groups - begin(slice)); }
};

// A copy takes whole units of 16 bytes, here those of groups [first, last) of what starts at x. Units
// that they only begin or end in are inside the allocation too, since that is made of such units.
template <class T>
struct Units {
  const unsigned char* from;
  int skew, bytes;  // the first group is `skew` bytes behind `from`

  __device__ Units(const T* x, int first, int last) {
    from = reinterpret_cast<const unsigned char*>(x + int64_t{first} * kGroup<T>);
    skew = reinterpret_cast<uintptr_t>(from) % 16;
    from -= skew;
    bytes = (last - first) * 16 + (skew != 0 ? 16 : 0);
  }
};

// A cluster of blocks a row, one a slice.
void logprob_on_clusters(const OnDevice& device, const LogprobForward& in, const Slices& slices);
// One block a multiprocessor, which goes from row to row.
void logprob_on_ring(const OnDevice& device, const LogprobForward& in, const Slices& slices);
}  // namespace r1
