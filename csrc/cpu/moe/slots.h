// gather and inverse of moe_sort, and loops over the rows or tokens that they lead from.
#pragma once

#include <algorithm>

#include "cpu/common/parallel.h"
#include "cpu/common/rows.h"

namespace r1 {
namespace {  // Tensor itself is hidden in each library
struct Slots {
  Tensor held_gather, held_inverse;
  int64_t rows, tokens, top_k;
  const int32_t *gather, *inverse;  // [P] and [T, k]

  Slots(const char* op, const Tensor& of_rows, const Tensor& of_tokens)
      : held_gather(to_dtype(of_rows, ScalarType::Int)),
        held_inverse(to_dtype(of_tokens, ScalarType::Int)), rows(of_rows.numel()),
        tokens(of_tokens.size(0)), top_k(of_tokens.size(1)), gather(data<int32_t>(held_gather)),
        inverse(data<int32_t>(held_inverse)) {
    check(op, "gather", gather, rows, tokens * top_k);
    check(op, "inverse", inverse, tokens * top_k, rows);
  }

 private:
  static void check(const char* op, const char* name, const int32_t* index, int64_t count,
                    int64_t limit) {
    int32_t least = -1, most = -1;
    for (int64_t i = 0; i < count; ++i) {
      least = std::min(least, index[i]);
      most = std::max(most, index[i]);
    }
    R1_CHECK(least == -1 && most < limit, op, ": ", name, ": expected 0 ≤ ", name, " < ", limit,
             " or -1, got ", least < -1 ? least : most);
  }
};

// Calls body(i) for i in [0, count), in tasks that move enough to be worth a thread. Neighbouring
// tokens have neighbouring rows at each expert, so long stretches read whole pages: there are eight
// a thread, which still even out.
template <class Body>
static void parallel_rows(int64_t count, int64_t bytes, const Body& body) {
  const int64_t stretch = count / (8 * workers());
  parallel_ranges(count, std::max(items_a_task(bytes), stretch), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}
}  // namespace
}  // namespace r1
