// The backward pass of packed_attention: weights are made again from the log-sum-exp, and a tile's
// queries add to the gradients of all keys that they see.
#include "cpu/attention/packed_attention.h"

#include "cpu/attention/packed_attention_tile.h"

namespace r1::R1_ISA {
namespace {
// A tile's queries as a right operand of sums over lanes: [panel][unit of lanes][kPanel].
template <class T>
void pack_lane_rows(const Lanes& lanes, const Heads& x, int64_t width, uint32_t* out) {
  const int64_t step = panel_width(width);
  for (int64_t i = 0; i < width; i += step, out += kPanel * kPanel)
    pack_pairs<T>(lanes.count, at_most(step, width - i),
                  [&](int64_t lane) { return lanes.row<typename T::Element>(x, lane) + i; }, out);
}

// sums[key][i] += Σ_lane weights[key][lane]·rows[lane][i] for the keys of a span.
template <class T>
void sum_of_lanes(const Span& span, const Lanes& lanes, const typename T::Element* weights,
                  const uint32_t* rows, int64_t width, float* sums) {
  const int64_t step = panel_width(width), stride = row_of_sums(width);
  const Left left{(const uint32_t*)(weights + span.row * kPanel + span.lane), kPanel / T::kPerUnit, 1};
  rows += span.lane / T::kPerUnit * kPanel;
  for (int64_t i = 0; i < width; i += step, rows += kPanel * kPanel)
    gemm_panel<T>(span.rows, at_most(step, width - i),
                  units_of(lanes.count - span.lane, T::kPerUnit), left, rows, sums + i, stride, true);
}

// What a block's weights and their slopes are kept as: rows of elements, which sums over lanes read,
// and slopes in units of keys, which sums over keys read. In fp32 these are the same.
template <class T>
struct Weights {
  float *scores, *products;  // [key][lane]: query·key, and dout·value
  typename T::Element *rows, *slopes;
  uint32_t* slope_units;
};

// Of one vector of lanes.
template <class T>
void differentiate(const Block& block, int64_t lane, F scale, F lse, F delta, I after, int64_t first,
                   const Weights<T>& w) {
  const auto row = [&](const Span& span, int64_t i, F& slope) __attribute__((always_inline)) {
    const int64_t at = (span.row + i) * kPanel + lane;
    F weight = exp_nonpositive(load(w.scores + at) * scale - lse);
    const int32_t key = static_cast<int32_t>(span.key + i - first);
    if (span.causal && key > 0) weight = after >= I{} + key ? weight : F{};
    slope = weight * (load(w.products + at) - delta) * scale;
    T::store(w.rows + at, weight);
    T::store(w.slopes + at, slope);
  };
  for (const Span& span : block) {
    if (lane < span.lane) break;
    for (int64_t i = 0; i < span.rows; i += T::kPerUnit) {
      F low, high{};
      row(span, i, low);
      if constexpr (T::kPerUnit == 2) {
        if (i + 1 < span.rows) row(span, i + 1, high);
        store_as(w.slope_units + (span.row + i) / 2 * kPanel + lane, T::units(low, high));
      }
    }
  }
}

template <class T>
void backward(const PackedAttentionBackward& b, const QueryTile& tile, int64_t key_head,
              const KeySums& own, const KeySums& prefix, float* all_scratch) {
  using Element = typename T::Element;
  const PackedAttention& a = b.forward;
  const Lanes lanes(tile, a.group, key_head);
  float* scratch = all_scratch;
  const auto take = [&](int64_t floats) {
    float* taken = scratch;
    scratch += floats * kPanel;
    return taken;
  };
  auto* query = (uint32_t*)take(row_of_sums(a.width));
  auto* dout = (uint32_t*)take(row_of_sums(a.value_width));
  float* dquery = take(row_of_sums(a.width));
  auto* query_rows = (uint32_t*)take(kPanel * panels_of(a.width));
  auto* dout_rows = (uint32_t*)take(kPanel * panels_of(a.value_width));
  Weights<T> w;
  w.scores = take(kBackwardBlockKeys);
  w.products = take(kBackwardBlockKeys);
  if constexpr (T::kPerUnit == 1) {
    w.rows = w.scores;
    w.slopes = w.products;
    w.slope_units = (uint32_t*)w.products;
  } else {
    w.rows = (Element*)take(kBackwardBlockKeys / 2);
    w.slopes = (Element*)take(kBackwardBlockKeys / 2);
    w.slope_units = (uint32_t*)take(kBackwardBlockKeys / 2);
  }
  auto* packed = (uint32_t*)take(kBackwardBlockKeys / 2);

  alignas(64) float lse[kPanel] = {}, delta[kPanel] = {};
  for (int64_t i = 0; i < lanes.count; ++i) {
    lse[i] = a.lse[lanes.head[i] * a.tokens + lanes.token[i]];
    const auto *out = lanes.row<Element>(a.out, i), *slope = lanes.row<Element>(b.dout, i);
    F products{};
    for (int64_t j = 0; j < a.value_width; j += kWidth)
      products = products + some_of<T>(out + j, a.value_width - j) * some_of<T>(slope + j, a.value_width - j);
    delta[i] = sum(products);
  }
  float finite = 0;
  for (int64_t i = 0; i < lanes.count; ++i) finite += 0 * lse[i] + 0 * delta[i];
  if (finite != 0 && tile.tokens > 1)
    return each_token(tile, [&](const QueryTile& one) {
      backward<T>(b, one, key_head, own, prefix, all_scratch);
    });
  pack_queries<T>(lanes, a.query, a.width, query);
  pack_queries<T>(lanes, b.dout, a.value_width, dout);
  pack_lane_rows<T>(lanes, a.query, a.width, query_rows);
  pack_lane_rows<T>(lanes, b.dout, a.value_width, dout_rows);
  bool first = true;
  each_block<kBackwardBlockKeys>(tile, [&](const Block& block) {
    score<T>(block, lanes, a.key, key_head, a.width, query, w.scores);
    score<T>(block, lanes, a.value, key_head, a.value_width, dout, w.products);
    for (int64_t n = 0; n < lanes.count; n += kWidth)
      differentiate<T>(block, n, splat(a.scale), load(lse + n), load(delta + n),
                       load_as<I>(lanes.after + n), tile.begin, w);
    if (T::kPerUnit == 2 && lanes.count % 2)  // what shares a unit with the last lane
      for (int64_t i = lanes.count; i < block.rows * kPanel; i += kPanel) w.rows[i] = w.slopes[i] = 0;
    for (const Span& span : block) {
      const KeySums& sums = span.own ? own : prefix;
      const int64_t row = span.key - sums.first;
      sum_of_lanes<T>(span, lanes, w.rows, dout_rows, a.value_width,
                      sums.values + row * row_of_sums(a.value_width));
      sum_of_lanes<T>(span, lanes, w.slopes, query_rows, a.width,
                      sums.keys + row * row_of_sums(a.width));
    }
    sum_of_keys<T>(block, lanes, a.key, key_head, a.width, w.slope_units, packed, dquery, !first);
    first = false;
  });
  store_queries<T>(lanes, b.dquery, a.width, dquery);
}

template <class T>
void store_total(const float* sums, int64_t count, int64_t next, int64_t width, void* to) {
  auto* out = static_cast<typename T::Element*>(to);
  for (int64_t i = 0; i < width; i += kWidth) {
    F total = load(sums + i);
    for (int64_t n = 1; n < count; ++n) total = total + load(sums + n * next + i);
    store_some<T>(out + i, total, width - i);
  }
}
}  // namespace

void packed_attention_backward_tile(const PackedAttentionBackward& b, const QueryTile& tile,
                                    int64_t key_head, const KeySums& own, const KeySums& prefix,
                                    float* scratch) {
  (b.forward.bf16 ? backward<BF16> : backward<F32>)(b, tile, key_head, own, prefix, scratch);
}

void packed_attention_backward_total(bool bf16, const float* sums, int64_t count, int64_t next,
                                     int64_t width, void* out) {
  (bf16 ? store_total<BF16> : store_total<F32>)(sums, count, next, width, out);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/attention/packed_attention_segments.h"

R1_DECLARE(void packed_attention_backward_tile(const PackedAttentionBackward&, const QueryTile&, int64_t,
                                               const KeySums&, const KeySums&, float*))
R1_DECLARE(void packed_attention_backward_total(bool, const float*, int64_t, int64_t, int64_t, void*))

namespace r1 {
namespace {
// Segments of one prefix that one task goes through in order, adding to sums of its own for the
// prefix. They have as many tokens as the prefix, if there are so many: all sums together take no
// more memory than fp32 gradients of all keys.
struct Chunk {
  int64_t prefix;  // < 0 for none
  std::vector<int64_t> segments;
  int64_t slot;    // of sums of its prefix
};

constexpr int64_t kChunkTokens = 256;  // at least, which take far longer than the sums of a prefix

struct Chunks {
  std::vector<Chunk> all;
  std::vector<int64_t> slots;  // sums of each segment: 1 + its chunks' where it is a prefix, else 0

  explicit Chunks(const std::vector<Segment>& segments) : slots(segments.size(), 0) {
    const auto count = static_cast<int64_t>(segments.size());
    std::vector<int64_t> order;
    for (int64_t s = 0; s < count; ++s)
      if (segments[s].tokens() > 0) order.push_back(s);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return segments[a].prefix < segments[b].prefix; });
    int64_t tokens = 0;
    for (int64_t s : order) {
      const int64_t prefix = segments[s].prefix;
      const bool with_last = prefix >= 0 && !all.empty() && all.back().prefix == prefix &&
                             tokens < std::max(kChunkTokens, segments[prefix].tokens());
      if (!with_last) {
        tokens = 0;
        if (prefix >= 0) slots[prefix] += slots[prefix] ? 1 : 2;
        all.push_back({prefix, {}, prefix < 0 ? 0 : slots[prefix] - 1});
      }
      all.back().segments.push_back(s);
      tokens += segments[s].tokens();
    }
  }
};

struct Gradients {
  const std::vector<Segment>& segments;
  const PackedAttentionBackward& b;
  const Heads dkey, dvalue;
  const int64_t key_row, value_row;  // floats

  int64_t floats(const Segment& s) const { return s.tokens() * (key_row + value_row); }

  KeySums at(const Segment& s, float* sums) const {
    return {s.begin, sums, sums + s.tokens() * key_row};
  }

  // The sums of `count` slots, `next` floats apart, become a segment's gradients.
  void store(const Segment& s, int64_t head, const float* sums, int64_t count, int64_t next) const {
    const auto total = R1_DISPATCH(packed_attention_backward_total);
    const bool bf16 = b.forward.bf16;
    const auto rows = [&](const Heads& out, const float* from, int64_t row, int64_t width) {
      for (int64_t i = 0; i < s.tokens(); ++i)
        total(bf16, from + i * row, count, next, width,
              static_cast<char*>(out.p) +
                  ((s.begin + i) * out.token + head * out.head) * (bf16 ? 2 : 4));
    };
    rows(dkey, sums, key_row, b.forward.width);
    rows(dvalue, sums + s.tokens() * key_row, value_row, b.forward.value_width);
  }
};

std::tuple<Tensor, Tensor, Tensor> packed_attention_backward(Tensor dout, Tensor query, Tensor key,
                                                             Tensor value, Tensor out, Tensor lse,
                                                             Tensor cu_seqlens, OptionalTensor prefix,
                                                             double scale) {
  constexpr const char* op = "packed_attention_backward";
  const Attended x(op, query, key, value);
  const Segments segments(op, cu_seqlens, prefix, x.tokens());
  const int64_t heads = query.size(1);
  for (const Tensor& t : {out, dout})
    R1_CHECK(t.dim() == 3 && t.size(0) == x.tokens() && t.size(1) == heads &&
                 t.size(2) == x.value_width && t.scalar_type() == query.scalar_type(),
             op, ": dout, out: expected [", x.tokens(), ", ", heads, ", ", x.value_width,
             "], dtype of query");
  expect_numel(op, "lse", lse, heads * x.tokens());
  const Tensor kept = in_units(out), slopes = in_units(dout), sums_of_weights = to_dtype(lse, ScalarType::Float);
  Tensor dquery = new_output(query, {x.tokens(), heads, x.width});
  Tensor dkey = new_output(key, {x.tokens(), key.size(1), x.width});
  Tensor dvalue = new_output(value, {x.tokens(), key.size(1), x.value_width});
  const PackedAttentionBackward b{x.arguments(scale, kept, sums_of_weights), heads_of(slopes),
                                  heads_of(dquery)};
  const PackedAttention& a = b.forward;
  const Gradients gradients{segments.all, b, heads_of(dkey), heads_of(dvalue),
                            row_of_sums(a.width), row_of_sums(a.value_width)};
  const Chunks chunks(segments.all);

  // Sums of prefixes: [slot][key head][floats of the segment] from `start` on.
  std::vector<int64_t> start(segments.all.size()), shared;
  int64_t total = 0, longest = 0;
  for (size_t s = 0; s < segments.all.size(); ++s) {
    const int64_t floats = gradients.floats(segments.all[s]);
    start[s] = total;
    total += chunks.slots[s] * a.key_heads * floats;
    if (chunks.slots[s]) shared.push_back(s);
    else longest = std::max(longest, floats);
  }
  Buffer<float> sums(total), own_sums(workers() * longest);
  const auto slot = [&](int64_t s, int64_t number, int64_t head) {
    return sums.p + start[s] + (number * a.key_heads + head) * gradients.floats(segments.all[s]);
  };

  const int64_t floats = packed_attention_backward_scratch(a.width, a.value_width);
  Buffer<float> scratch(workers() * floats);
  const auto kernel = R1_DISPATCH(packed_attention_backward_tile);
  parallel(chunks.all.size() * a.key_heads, [&](int64_t task, int worker) {
    const Chunk& chunk = chunks.all[task / a.key_heads];
    const int64_t head = task % a.key_heads;
    const auto cleared = [&](int64_t s, float* p) {
      std::memset(p, 0, gradients.floats(segments.all[s]) * sizeof(float));
      return gradients.at(segments.all[s], p);
    };
    KeySums of_prefix{};
    if (chunk.prefix >= 0) of_prefix = cleared(chunk.prefix, slot(chunk.prefix, chunk.slot, head));
    std::vector<QueryTile> tiles;
    for (int64_t s : chunk.segments) {
      const bool is_prefix = chunks.slots[s] > 0;
      const KeySums own = cleared(s, is_prefix ? slot(s, 0, head) : own_sums.p + worker * longest);
      tiles.clear();
      segments.add_tiles(s, a.group, tiles);
      for (const QueryTile& tile : tiles)
        kernel(b, tile, head, own, of_prefix, scratch.p + worker * floats);
      if (!is_prefix) gradients.store(segments.all[s], head, own.keys, 1, 0);
    }
  });
  parallel(shared.size() * a.key_heads, [&](int64_t task, int) {
    const int64_t s = shared[task / a.key_heads], head = task % a.key_heads;
    gradients.store(segments.all[s], head, slot(s, 0, head), chunks.slots[s],
                    a.key_heads * gradients.floats(segments.all[s]));
  });
  return {dquery, dkey, dvalue};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "packed_attention_backward(Tensor dout, Tensor query, Tensor key, Tensor value, Tensor out, "
      "Tensor lse, Tensor cu_seqlens, Tensor? prefix, float scale) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("packed_attention_backward", TORCH_BOX(&packed_attention_backward));
}
}  // namespace r1
#endif
