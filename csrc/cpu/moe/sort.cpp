// moe_sort: a counting sort in two walks over the slots. Threads take stretches of slots and begin
// each expert's rows where the stretch before ends them, so the result does not depend on how the
// slots are cut.
#include "cpu/common/isa.h"

#ifdef R1_BASELINE
#include <algorithm>
#include <vector>

#include "cpu/moe/sort.h"
#include "cpu/common/parallel.h"

namespace r1 {
namespace {
// Those of r1kernels/moe/sort.py: more would be memory for padding alone.
constexpr int64_t kMostExperts = 1024, kMostAlign = 1 << 16;
constexpr int64_t kStretchSlots = 8192;  // below it a second thread costs more than it gives
}

std::tuple<Tensor, Tensor, Tensor, Tensor> moe_sort(Tensor ids, int64_t num_experts,
                                                    int64_t align) {
  R1_CHECK(ids.dim() == 2, "moe_sort: ids: expected shape [T, k]");
  R1_CHECK(num_experts > 0 && num_experts <= kMostExperts,
           "moe_sort: num_experts: expected 1 to ", kMostExperts, ", got ", num_experts);
  R1_CHECK(align > 0 && align <= kMostAlign, "moe_sort: align: expected 1 to ", kMostAlign, ", got ",
           align);
  const Tensor slots = to_dtype(ids, ScalarType::Long);
  const int64_t* id = data<int64_t>(slots);
  const int64_t count = slots.numel(), experts = num_experts;
  R1_CHECK(count <= INT32_MAX, "moe_sort: ids: expected at most 2^31 − 1 slots, got ", count);
  const int64_t rows =
      align == 1 ? count : (count + std::min(count, experts) * (align - 1)) / align * align;
  R1_CHECK(rows <= INT32_MAX, "moe_sort: ids: expected at most 2^31 − 1 rows, got ", rows);
  Tensor counts = new_empty(ids, {experts}, ScalarType::Int);
  Tensor offsets = new_empty(ids, {experts + 1}, ScalarType::Int);
  Tensor gather = new_empty(ids, {rows}, ScalarType::Int);
  Tensor inverse = new_empty(ids, {ids.size(0), ids.size(1)}, ScalarType::Int);
  int32_t *total = data<int32_t>(counts), *offset = data<int32_t>(offsets);
  int32_t *slot_of = data<int32_t>(gather), *row_of = data<int32_t>(inverse);

  const int64_t stretches =
      std::clamp<int64_t>((count + kStretchSlots - 1) / kStretchSlots, 1, workers());
  const auto begin_of = [&](int64_t stretch) { return count * stretch / stretches; };
  // [stretches, experts + 1]: how many slots, then the next row; skipped slots come last.
  std::vector<int32_t> next_rows(stretches * (experts + 1));
  const auto expert_of = [&](int64_t slot) {
    return std::min<uint64_t>(static_cast<uint64_t>(id[slot]), experts);
  };
  parallel(stretches, [&](int64_t stretch, int) {
    int32_t* of = &next_rows[stretch * (experts + 1)];
    for (int64_t s = begin_of(stretch); s < begin_of(stretch + 1); ++s) ++of[expert_of(s)];
  });
  offset[0] = 0;
  for (int64_t e = 0; e < experts; ++e) {
    int32_t next = offset[e];
    for (int64_t stretch = 0; stretch < stretches; ++stretch) {
      int32_t& next_row = next_rows[stretch * (experts + 1) + e];
      next += std::exchange(next_row, next);
    }
    total[e] = next - offset[e];
    offset[e + 1] = offset[e] + static_cast<int32_t>((total[e] + align - 1) / align * align);
    std::fill(slot_of + next, slot_of + offset[e + 1], -1);
  }
  std::fill(slot_of + offset[experts], slot_of + rows, -1);
  parallel(stretches, [&](int64_t stretch, int) {
    int32_t* next = &next_rows[stretch * (experts + 1)];
    for (int64_t s = begin_of(stretch); s < begin_of(stretch + 1); ++s) {
      const uint64_t expert = expert_of(s);
      if (expert == static_cast<uint64_t>(experts)) {
        row_of[s] = -1;
        continue;
      }
      const int32_t row = next[expert]++;
      row_of[s] = row;
      slot_of[row] = static_cast<int32_t>(s);
    }
  });
  return {counts, offsets, gather, inverse};
}

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "moe_sort(Tensor ids, SymInt num_experts, SymInt align) "
      "-> (Tensor counts, Tensor offsets, Tensor gather, Tensor inverse)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) { m.impl("moe_sort", TORCH_BOX(&moe_sort)); }
}  // namespace r1
#endif
