// moe_sort of given ids: one launch, two reads of them.
#include "cuda/moe/sort.h"

namespace r1 {
namespace {
constexpr int kThreads = 512;

__global__ void __launch_bounds__(kThreads) sort(MoeSort in, Segments segments) {
  const BlockSort<kThreads> rows(in);
  const Segment slots = segments.of(int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32);
  for (int64_t slot = slots.begin + threadIdx.x % 32; slot < slots.end; slot += 32) {
    const int64_t id = in.ids[slot];
    if (id >= 0 && id < in.experts) rows.add(static_cast<int>(id));
  }
  rows.scatter(slots);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> moe_sort(Tensor ids, int64_t num_experts,
                                                    int64_t align) {
  const OnDevice device(ids);
  check_sort("moe_sort", num_experts, align);
  R1_CHECK(ids.dim() == 2, "moe_sort: ids: expected shape [T, k], got ", ids.dim(), " dimensions");
  const Tensor slots = to_dtype(ids, ScalarType::Long);
  const int blocks = blocks_for(device, slots.numel(), kThreads);
  const SortTensors out = SortTensors::of("moe_sort", slots, num_experts, align, blocks);
  device.launch_together("moe_sort", sort, blocks, kThreads,
                         BlockSort<kThreads>::shared_bytes(num_experts), out.of(slots, align),
                         Segments(slots.numel(), blocks * (kThreads / 32)));
  return {out.counts, out.offsets, out.gather, out.inverse};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cuda, m) {
  m.def(
      "moe_sort(Tensor ids, SymInt num_experts, SymInt align) "
      "-> (Tensor counts, Tensor offsets, Tensor gather, Tensor inverse)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cuda, CUDA, m) { m.impl("moe_sort", TORCH_BOX(&moe_sort)); }
}  // namespace r1
