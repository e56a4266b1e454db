// The groups of rows that `offsets` makes, and how their work is handed to threads.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/common/gemm.h"
#include "cpu/moe/grouped_mm.h"
#include "cpu/common/outputs.h"
#include "cpu/common/parallel.h"
#include "cpu/common/rows.h"

namespace r1 {
namespace {  // Tensor itself is hidden in each library
struct Groups {
  std::vector<Group> groups;
  std::vector<Part> parts;
  std::vector<int64_t> without_rows;  // experts
  int64_t rows, experts, units = 0, panels = 0;
  int64_t longest = 0;  // rows of a group, to whole squares

  // With a gather, the padding at the end of an expert's rows is left out.
  Groups(const char* op, const Tensor& offsets, int64_t all_rows, bool bf16,
         const int32_t* gather = nullptr)
      : rows(all_rows), experts(offsets.numel() - 1) {
    const Tensor ends = to_dtype(offsets, ScalarType::Int);
    R1_CHECK(offsets.dim() == 1 && experts >= 0, op, ": offsets: expected shape [E + 1]");
    const int32_t* end = data<int32_t>(ends);
    R1_CHECK(end[0] == 0, op, ": offsets: expected to start at 0, got ", end[0]);
    for (int64_t e = 0; e < experts; ++e) {
      R1_CHECK(end[e] <= end[e + 1] && end[e + 1] <= rows, op, ": offsets[", e + 1, "]: expected ",
               end[e], " ≤ offset ≤ P = ", rows, ", got ", end[e + 1]);
      int64_t last = end[e + 1];
      while (gather && last > end[e] && gather[last - 1] < 0) --last;
      add({e, end[e], last - end[e], units}, bf16);
    }
  }

  // Zeroes the rows that are no expert's.
  void clear_others(void* out, int64_t row_bytes) const {
    int64_t from = 0;
    auto clear = [&](int64_t to) {
      std::memset(static_cast<char*>(out) + from * row_bytes, 0, (to - from) * row_bytes);
    };
    for (const Group& group : groups) {
      clear(group.row);
      from = group.row + group.rows;
    }
    clear(rows);
  }

  // Zeroes the gradients [E, …] of experts without rows.
  void clear_weights(const Tensor& gradients) const {
    const int64_t bytes = gradients.numel() / std::max<int64_t>(experts, 1) * gradients.element_size();
    parallel(without_rows.size(), [&](int64_t i, int) {
      std::memset(data<char>(gradients) + without_rows[i] * bytes, 0, bytes);
    });
  }

 private:
  void add(const Group& group, bool bf16) {
    if (group.rows == 0) return without_rows.push_back(group.expert);
    groups.push_back(group);
    for (int64_t row = 0; row < group.rows; row += kPartRows) {
      parts.push_back({group, row, std::min(kPartRows, group.rows - row), panels});
      panels += (parts.back().rows + kPanel - 1) / kPanel;
    }
    units += bf16 ? (group.rows + 1) / 2 : group.rows;
    longest = std::max(longest, (group.rows + kSquare - 1) / kSquare * kSquare);
  }
};

// Calls body(item, c0, c1, worker) so that c0 to c1 cover the columns of each item, in steps of
// whole tiles: in one go where there are many items, in many where there are few.
template <class Item, class Body>
void each_block(const std::vector<Item>& items, int64_t columns, int64_t tile, const Body& body) {
  const int64_t count = static_cast<int64_t>(items.size()), tiles = (columns + tile - 1) / tile;
  if (count == 0) return;
  const int64_t wanted = workers() == 1 ? 1 : (8 * workers() + count - 1) / count;
  const int64_t blocks = std::min(wanted, tiles);
  parallel(count * blocks, [&](int64_t task, int worker) {
    const int64_t block = task % blocks;
    const int64_t c0 = tiles * block / blocks * tile, c1 = tiles * (block + 1) / blocks * tile;
    body(items[task / blocks], c0, std::min(c1, columns), worker);
  });
}
}  // namespace
}  // namespace r1
