// What both passes of packed_attention share: queries as lanes, the keys that they see in blocks, and
// the products with these.
//
// Scores are made with the keys as rows and the queries as lanes: maxima and sums over keys are then
// those of whole vectors, and a lane's numbers depend on its own query and keys alone.
#pragma once

#include "cpu/moe/grouped_mm_tile.h"
#include "cpu/attention/packed_attention.h"

namespace r1::R1_ISA {
// Keys that follow one another in memory, in rows of a block from `row` on, seen by the lanes from
// `lane` on; each of these sees a key if its token is not before it.
struct Span {
  int64_t key, rows, row, lane;
  bool own, causal;
};

constexpr int64_t kStep = 16;  // lanes after which the keys at the end of a segment are looked at anew
constexpr int kMostSpans = 2 + kPanel / kStep;

struct Block {
  Span spans[kMostSpans];
  int count = 0;
  int64_t rows = 0;

  const Span* begin() const { return spans; }
  const Span* end() const { return spans + count; }
};

// Calls body(block) for all keys that a tile sees, in blocks of `most` rows at most: first those of
// the prefix, then those of its own segment. Spans start at whole units. The first has all lanes.
template <int64_t most, class Body>
static inline void each_block(const QueryTile& t, const Body& body) {
  Block block;
  const auto add = [&](Span span, int64_t keys) {
    while (keys > 0) {
      if (block.rows == most) {
        body(block);
        block = {};
      }
      span.row = block.rows;
      span.rows = at_most(keys, most - block.rows);
      block.spans[block.count++] = span;
      block.rows += (span.rows + 1) / 2 * 2;
      span.key += span.rows;
      keys -= span.rows;
    }
  };
  add({t.prefix, 0, 0, 0, false, false}, t.prefix_tokens);
  add({t.own, 0, 0, 0, true, false}, t.begin - t.own);
  const auto first_key = [&](int64_t lane) {
    return at_most((lane + t.heads - 1) / t.heads, t.tokens);
  };
  for (int64_t lane = 0; lane < t.tokens * t.heads; lane += kStep) {
    const int64_t key = first_key(lane);
    add({t.begin + key, 0, 0, lane, true, true}, first_key(lane + kStep) - key);
  }
  if (block.rows > 0) body(block);
}

// Calls body(tile) for each token of a tile. Its queries see the same keys, so that no weight of 0
// meets a NaN that some of them do not see.
template <class Body>
static inline void each_token(const QueryTile& t, const Body& body) {
  QueryTile one = t;
  one.tokens = 1;
  for (; one.begin < t.begin + t.tokens; ++one.begin) body(one);
}

// Where the lanes of a tile lie.
struct Lanes {
  int64_t count;
  int64_t token[kPanel], head[kPanel];
  alignas(64) int32_t after[kPanel];  // tokens from the first of the tile to that of the lane

  Lanes(const QueryTile& t, int64_t group, int64_t key_head) : count(t.tokens * t.heads) {
    for (int64_t i = 0; i < kPanel; ++i) {
      const int64_t from = i / t.heads;
      after[i] = static_cast<int32_t>(from);
      token[i] = t.begin + from;
      head[i] = key_head * group + t.head + i % t.heads;
    }
  }

  template <class E>
  E* row(const Heads& x, int64_t i) const {
    return static_cast<E*>(x.p) + token[i] * x.token + head[i] * x.head;
  }
};

template <class T>
static inline const typename T::Element* key_row(const Heads& x, int64_t key, int64_t head) {
  return static_cast<const typename T::Element*>(x.p) + key * x.token + head * x.head;
}

// The first `count` elements of a row in fp32, with zeros after them.
template <class T>
static inline F some_of(const typename T::Element* p, int64_t count) {
  const auto elements = load_some<typename T::Elements>(p, count);
  if constexpr (T::kPerUnit == 1) return (F)elements;
  else return from_bf16(elements);
}

// Queries as lanes, [unit][kPanel].
template <class T>
static inline void pack_queries(const Lanes& lanes, const Heads& x, int64_t width, uint32_t* out) {
  pack_lanes(lanes.count, units_of(width, T::kPerUnit),
             [&](int64_t i) { return (const uint32_t*)lanes.row<typename T::Element>(x, i); }, out);
}

// c[key][lane] = Σ_i x[key][i]·lanes[i][lane] for the keys of a block.
template <class T>
static inline void score(const Block& block, const Lanes& lanes, const Heads& x, int64_t head,
                         int64_t width, const uint32_t* packed, float* c) {
  for (const Span& span : block) {
    const auto* rows = (const uint32_t*)key_row<T>(x, span.key, head);
    gemm_panel<T>(span.rows, lanes.count - span.lane, units_of(width, T::kPerUnit),
                  Left{rows, x.token / T::kPerUnit, 1}, packed + span.lane,
                  c + span.row * kPanel + span.lane, kPanel, false);
  }
}

// c[i][lane] (+)= Σ_key x[key][i]·weights[key][lane] for the keys of a block: the weights in units.
// `packed` has room for the block's x.
template <class T>
static inline void sum_of_keys(const Block& block, const Lanes& lanes, const Heads& x, int64_t head,
                               int64_t width, const uint32_t* weights, uint32_t* packed, float* c,
                               bool accumulate) {
  for (const Span& span : block) {
    const int64_t units = units_of(span.rows, T::kPerUnit), count = lanes.count - span.lane;
    const auto* rows = key_row<T>(x, span.key, head);
    const uint32_t* right = weights + span.row / T::kPerUnit * kPanel + span.lane;
    if constexpr (T::kPerUnit == 1) {
      gemm_panel<T>(width, count, units, Left{(const uint32_t*)rows, 1, x.token}, right,
                    c + span.lane, kPanel, accumulate);
    } else {
      for (int64_t i = 0; i < width; i += kPanel) {
        const int64_t columns = at_most(width - i, kPanel);
        pack_pairs<T>(span.rows, columns, [&](int64_t key) { return rows + key * x.token + i; },
                      packed);
        turn<T>(packed, units);
        gemm_panel<T>(columns, count, units, Left{packed, 1, kPanel}, right,
                      c + i * kPanel + span.lane, kPanel, accumulate);
      }
    }
    accumulate = true;
  }
}

// The rows of lanes, from c[i][lane].
template <class T>
static inline void store_queries(const Lanes& lanes, const Heads& x, int64_t width, const float* c) {
  store_lanes<T>(c, width, lanes.count,
                 [&](int64_t i) { return lanes.row<typename T::Element>(x, i); });
}
}  // namespace r1::R1_ISA
