// Where the rows of tokens stand: what moe_sort made, checked, and a loop over tokens and padding.
#pragma once

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/rows.h"

namespace r1 {
namespace {  // Tensor itself is hidden in each library
struct Slots {
  Tensor of_rows, of_tokens;
  int64_t rows, tokens, top_k;
  const int32_t *gather, *inverse;

  Slots(const char* op, const Tensor& gather_, const Tensor& inverse_)
      : of_rows(to_dtype(gather_, ScalarType::Int)), of_tokens(to_dtype(inverse_, ScalarType::Int)) {
    R1_CHECK(gather_.dim() == 1 && inverse_.dim() == 2, op,
             ": gather, inverse: expected shapes [P] and [T, k]");
    rows = gather_.size(0), tokens = inverse_.size(0), top_k = inverse_.size(1);
    gather = data<int32_t>(of_rows), inverse = data<int32_t>(of_tokens);
    check(op, "gather", gather, rows, "inverse", inverse, tokens * top_k);
    check(op, "inverse", inverse, tokens * top_k, "gather", gather, rows);
  }

  // Calls token(t) for each token, and padding(p) for each row that is no token's. With k rows
  // of `bytes` to a token, a task is worth handing to a thread.
  template <class Token, class Padding>
  void each(int64_t bytes, const Token& token, const Padding& padding) const {
    constexpr int64_t kTask = 1 << 16;
    const int64_t many = std::max<int64_t>(kTask / std::max<int64_t>(bytes, 1), 1);
    const int64_t step = std::max<int64_t>(many / std::max<int64_t>(top_k, 1), 1);
    const int64_t first = (tokens + step - 1) / step;
    parallel(first + (rows + many - 1) / many, [&](int64_t task, int) {
      if (task < first) {
        for (int64_t t = task * step; t < std::min(tokens, (task + 1) * step); ++t) token(t);
        return;
      }
      const int64_t begin = (task - first) * many;
      for (int64_t p = begin; p < std::min(rows, begin + many); ++p)
        if (gather[p] < 0) padding(p);
    });
  }

 private:
  // Each is the other's inverse: every row is written by one thread, and read where it exists.
  static void check(const char* op, const char* name, const int32_t* index, int64_t count,
                    const char* other, const int32_t* back, int64_t limit) {
    for (int64_t i = 0; i < count; ++i) {
      if (index[i] == -1) continue;
      R1_CHECK(index[i] >= 0 && index[i] < limit, op, ": ", name, "[", i, "]: expected 0 ≤ ", name,
               " < ", limit, ", got ", index[i]);
      R1_CHECK(back[index[i]] == i, op, ": ", name, "[", i, "]: expected the inverse of ", other,
               ", got ", index[i], ", which is at ", back[index[i]], " there");
    }
  }
};
}  // namespace
}  // namespace r1
