// The arguments of packed_attention checked, and the work in them: tiles of queries, and segments whose
// gradients are made together.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/common/outputs.h"
#include "cpu/attention/packed_attention.h"
#include "cpu/common/parallel.h"
#include "cpu/common/rows.h"

namespace r1 {
namespace {
// Heads in place where rows are whole units there, else in a copy of them.
inline Tensor in_units(const Tensor& t) {
  const bool paired = is_bf16(t);
  const auto whole = [&](int64_t elements) { return !paired || elements % 2 == 0; };
  const bool dense_rows = t.size(2) <= 1 || t.stride(2) == 1;
  return dense_rows && whole(t.size(2)) && whole(t.stride(0)) && whole(t.stride(1)) ? t
                                                                                    : whole_units(t);
}

inline Heads heads_of(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1)}; }

struct Attended {
  const Tensor query, key, value;
  const int64_t width, value_width;

  Attended(const char* op, const Tensor& q, const Tensor& k, const Tensor& v)
      : query(in_units(checked(op, "query", q, q))), key(in_units(checked(op, "key", k, q))),
        value(in_units(checked(op, "value", v, q))), width(q.size(2)), value_width(v.size(2)) {
    R1_CHECK(k.size(2) == width, op, ": key: expected D = ", width, ", got ", k.size(2));
    R1_CHECK(v.size(1) == k.size(1), op, ": value: expected as many heads as keys have");
    R1_CHECK(k.size(1) > 0 && q.size(1) % k.size(1) == 0, op,
             ": query: expected a multiple of the ", k.size(1), " heads of keys, got ", q.size(1));
  }

  int64_t tokens() const { return query.size(0); }

  PackedAttention arguments(double scale, const Tensor& out, const Tensor& lse) const {
    return {is_bf16(query), tokens(), key.size(1), query.size(1) / key.size(1), width, value_width,
            static_cast<float>(scale), heads_of(query), heads_of(key), heads_of(value),
            heads_of(out), data<float>(lse)};
  }

 private:
  static const Tensor& checked(const char* op, const char* name, const Tensor& t, const Tensor& q) {
    R1_CHECK(t.dim() == 3 && t.size(0) == q.size(0), op, ": ", name,
             ": expected three dimensions, the first of ", q.size(0), " tokens");
    R1_CHECK(t.scalar_type() == q.scalar_type(), op, ": ", name, ": expected the dtype of query");
    return t;
  }
};

struct Segment {
  int64_t begin, end, prefix;  // prefix < 0 for none
  int64_t tokens() const { return end - begin; }
};

struct Segments {
  std::vector<Segment> all;

  Segments(const char* op, const Tensor& cu_seqlens, const OptionalTensor& prefix, int64_t tokens) {
    const Tensor ends = to_dtype(cu_seqlens, ScalarType::Int);
    const int64_t count = ends.numel() - 1;
    R1_CHECK(ends.dim() == 1 && count >= 0, op, ": cu_seqlens: expected shape [S + 1]");
    const auto* end = data<int32_t>(ends);
    R1_CHECK(end[0] == 0 && end[count] == tokens, op, ": cu_seqlens: expected to start at 0 and end at ",
             tokens, ", got ", end[0], " … ", end[count]);
    std::vector<int32_t> of(count, -1);
    if (prefix) {
      expect_numel(op, "prefix", *prefix, count);
      const Tensor given = to_dtype(*prefix, ScalarType::Int);
      std::copy_n(data<int32_t>(given), count, of.begin());
    }
    for (int64_t s = 0; s < count; ++s) {
      R1_CHECK(end[s] <= end[s + 1], op, ": cu_seqlens: expected non-decreasing offsets");
      R1_CHECK(of[s] >= -1 && of[s] < count, op, ": prefix[", s, "]: expected -1 ≤ prefix < ", count,
               ", got ", of[s]);
      R1_CHECK(of[s] < 0 || of[of[s]] < 0, op, ": prefix[", s,
               "]: expected a segment that has no prefix itself, got ", of[s]);
      all.push_back({end[s], end[s + 1], of[s]});
    }
  }

  // In tiles of at most kPanel lanes, which lie in the segment alone: what a query gives depends on
  // no other segment but its prefix.
  std::vector<QueryTile> tiles(int64_t group) const {
    std::vector<QueryTile> made;
    for (size_t s = 0; s < all.size(); ++s) add_tiles(s, group, made);
    return made;
  }

  void add_tiles(int64_t s, int64_t group, std::vector<QueryTile>& made) const {
    const Segment& own = all[s];
    const Segment none{0, 0, -1}, &before = own.prefix < 0 ? none : all[own.prefix];
    const int64_t heads = std::min<int64_t>(group, kPanel), tokens = kPanel / std::max<int64_t>(heads, 1);
    for (int64_t t = own.begin; t < own.end; t += tokens)
      for (int64_t head = 0; head < group; head += heads)
        made.push_back({s, t, std::min(tokens, own.end - t), head, std::min(heads, group - head),
                        own.begin, before.begin, before.tokens()});
  }
};
}  // namespace
}  // namespace r1
