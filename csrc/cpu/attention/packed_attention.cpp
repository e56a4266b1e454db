// packed_attention: softmax over the keys of a query's own segment and of its prefix, a block of keys
// at a time.
#include "cpu/attention/packed_attention.h"

#include "cpu/attention/packed_attention_tile.h"

namespace r1::R1_ISA {
namespace {
// Of each lane: the greatest score so far, and the sum of e^(score - greatest).
struct Softmax {
  alignas(64) float greatest[kPanel], sum[kPanel];
  // What sums made so far are multiplied by, since there is a greater score.
  alignas(64) float correction[kPanel];
};

constexpr float kHidden = -__builtin_inff();

// Scores of one vector of lanes become weights, in units.
template <class T>
void weigh(const Block& block, int64_t lane, F scale, I after, int64_t first, float* scores,
           Softmax& softmax) {
  const auto score = [&](const Span& span, int64_t i) __attribute__((always_inline)) {
    const F s = load(scores + (span.row + i) * kPanel + lane) * scale;
    const int32_t key = static_cast<int32_t>(span.key + i - first);
    return !span.causal || key <= 0 ? s : (after >= I{} + key ? s : splat(kHidden));
  };
  const F before = load(softmax.greatest + lane);
  F a = before, b = splat(kHidden);
  for (const Span& span : block) {
    if (lane < span.lane) break;
    int64_t i = 0;
    for (; i + 2 <= span.rows; i += 2) {
      a = max(a, score(span, i));
      b = max(b, score(span, i + 1));
    }
    if (i < span.rows) a = max(a, score(span, i));
  }
  const F greatest = max(a, b);
  a = b = F{};
  for (const Span& span : block) {
    if (lane < span.lane) break;
    auto* weights = (uint32_t*)scores + span.row / T::kPerUnit * kPanel + lane;
    int64_t i = 0;
    for (; i + 2 <= span.rows; i += 2) {
      const F low = exp_nonpositive(score(span, i) - greatest);
      const F high = exp_nonpositive(score(span, i + 1) - greatest);
      a = a + low;
      b = b + high;
      store_as(weights + i / T::kPerUnit * kPanel, T::units(low, high));
      if constexpr (T::kPerUnit == 1) store_as(weights + (i + 1) * kPanel, T::units(high, F{}));
    }
    if (i == span.rows) continue;
    const F low = exp_nonpositive(score(span, i) - greatest);
    a = a + low;
    store_as(weights + i / T::kPerUnit * kPanel, T::units(low, F{}));
  }
  const F correction = exp_nonpositive(before - greatest);
  store(softmax.greatest + lane, greatest);
  store(softmax.correction + lane, correction);
  store(softmax.sum + lane, load(softmax.sum + lane) * correction + a + b);
}

// Whether every result is a number.
template <class T>
bool forward(const PackedAttention& a, const QueryTile& tile, int64_t key_head, float* scratch) {
  const Lanes lanes(tile, a.group, key_head);
  auto* query = (uint32_t*)scratch;
  float* out = scratch + row_of_sums(a.width) * kPanel;
  float* scores = out + row_of_sums(a.value_width) * kPanel;
  auto* packed = (uint32_t*)(scores + kBlockKeys * kPanel);
  Softmax softmax;
  for (int64_t n = 0; n < kPanel; n += kWidth) {
    store(softmax.greatest + n, splat(kHidden));
    store(softmax.sum + n, F{});
  }
  pack_queries<T>(lanes, a.query, a.width, query);
  bool first = true;
  each_block<kBlockKeys>(tile, [&](const Block& block) {
    score<T>(block, lanes, a.key, key_head, a.width, query, scores);
    for (int64_t n = 0; n < lanes.count; n += kWidth)
      weigh<T>(block, n, splat(a.scale), load_as<I>(lanes.after + n), tile.begin, scores, softmax);
    for (int64_t i = 0; !first && i < a.value_width; ++i)
      for (int64_t n = 0; n < lanes.count; n += kWidth)
        store(out + i * kPanel + n, load(out + i * kPanel + n) * load(softmax.correction + n));
    sum_of_keys<T>(block, lanes, a.value, key_head, a.value_width, (const uint32_t*)scores, packed,
                   out, !first);
    first = false;
  });
  F total{};
  for (int64_t n = 0; n < lanes.count; n += kWidth) {
    const F sum = load(softmax.sum + n), inverse = splat(1.0f) / sum;
    for (int64_t i = 0; i < a.value_width; ++i) {
      const F result = load(out + i * kPanel + n) * inverse;
      store(out + i * kPanel + n, result);
      total = total + result * splat(0.0f);
    }
    store(softmax.sum + n, load(softmax.greatest + n) + log(sum));
  }
  store_queries<T>(lanes, a.out, a.value_width, out);
  for (int64_t i = 0; i < lanes.count; ++i)
    a.lse[lanes.head[i] * a.tokens + lanes.token[i]] = softmax.sum[i];
  return sum(total) == 0;
}
}  // namespace

void packed_attention_tile(const PackedAttention& a, const QueryTile& tile, int64_t key_head,
                           float* scratch) {
  const auto run = a.bf16 ? forward<BF16> : forward<F32>;
  if (!run(a, tile, key_head, scratch))
    each_token(tile, [&](const QueryTile& one) { run(a, one, key_head, scratch); });
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/attention/packed_attention_segments.h"

R1_DECLARE(void packed_attention_tile(const PackedAttention&, const QueryTile&, int64_t, float*))

namespace r1 {
namespace {
std::tuple<Tensor, Tensor> packed_attention(Tensor query, Tensor key, Tensor value,
                                            Tensor cu_seqlens, OptionalTensor prefix, double scale) {
  constexpr const char* op = "packed_attention";
  const Attended x(op, query, key, value);
  const Segments segments(op, cu_seqlens, prefix, x.query.size(0));
  Tensor out = new_output(query, {x.tokens(), x.query.size(1), value.size(2)});
  Tensor lse = new_output(query, {x.query.size(1), x.tokens()}, ScalarType::Float);
  const PackedAttention a = x.arguments(scale, out, lse);
  const int64_t floats = packed_attention_scratch(a.width, a.value_width);
  Buffer<float> scratch(workers() * floats);
  const auto kernel = R1_DISPATCH(packed_attention_tile);
  const std::vector<QueryTile> tiles = segments.tiles(a.group);
  parallel(tiles.size(), [&](int64_t i, int worker) {
    for (int64_t head = 0; head < a.key_heads; ++head)
      kernel(a, tiles[i], head, scratch.p + worker * floats);
  });
  return {out, lse};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "packed_attention(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, Tensor? prefix, "
      "float scale) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) { m.impl("packed_attention", TORCH_BOX(&packed_attention)); }
}  // namespace r1
#endif
