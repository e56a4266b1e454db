// linear_logprob: tiles of logits are made, used and forgotten, or kept for the backward pass.
#include "cpu/head/linear_logprob_tile.h"
#include "cpu/common/parallel.h"

namespace r1::R1_ISA {
template <class T>
static void forward(const Forward& f) {
  constexpr int64_t kGroup = 16;  // blocks that share a stripe of the weight while it is in cache
  const int64_t tiles = ceil_div(f.head.columns, kCols), per_split = ceil_div(tiles, kSplits);
  const int64_t blocks = f.rows.blocks(), groups = ceil_div(blocks, kGroup);
  const int64_t in_stripe = kStripe / kCols;
  parallel(kSplits * groups, [&](int64_t task, int) {
    alignas(64) float z[kCols * kRows];
    const int64_t split = task / groups, group = task % groups;
    const int64_t first = split * per_split, last = smaller(first + per_split, tiles);
    const int64_t begin = group * kGroup, end = smaller(begin + kGroup, blocks);
    for (int64_t b = begin; b < end; ++b) clear(f.statistics[split * blocks + b]);
    for (int64_t stripe = first; stripe < last; stripe += in_stripe)
      for (int64_t b = begin; b < end; ++b)
        for (int64_t tile = stripe; tile < smaller(stripe + in_stripe, last); ++tile) {
          const int64_t v0 = tile * kCols, cols = smaller(f.head.columns - v0, kCols);
          uint8_t* kept = b < f.kept_blocks ? f.kept + tile * f.kept_stride + b * Tile<T>::kBytes
                                            : nullptr;
          const int64_t lanes = f.rows.lanes(b);
          logits_tile<T>(f.head, f.rows, b, lanes, v0, cols, z);
          pick_targets(f.rows, b, z, v0, cols, f.target_logit);
          reduce_tile<T>(z, lanes, cols, f.want_entropy, &f.statistics[split * blocks + b], kept);
        }
  });
  parallel(blocks, [&](int64_t b, int) {  // in the order of the splits
    Statistics& total = f.statistics[b];
    for (int64_t split = 1; split < kSplits; ++split) {
      const Statistics& part = f.statistics[split * blocks + b];
      for (int64_t n = 0; n < kRows; n += kWidth)
        merge(total, n, load(part.max + n), load(part.sum + n), load(part.weighted + n));
    }
  });
}

void linear_logprob_forward(const Forward& f) {
  f.head.bf16 ? forward<BF16>(f) : forward<F32>(f);
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include "cpu/head/linear_logprob_rows.h"

R1_DECLARE(void linear_logprob_forward(const Forward&))
R1_DECLARE(void linear_logprob_frozen(const Frozen&))

namespace r1 {
namespace {
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

ForwardResult linear_logprob(Tensor hidden, Tensor weight, Tensor target, OptionalTensor bias,
                             OptionalTensor keep, OptionalTensor temperature, double logit_scale,
                             std::optional<double> softcap, bool want_entropy, bool /*entropy_grad*/,
                             int64_t kept_rows, bool frozen_head, int64_t ignore_index, bool sharded) {
  const Inputs in(hidden, weight, target, bias, keep, temperature, logit_scale, softcap,
                  ignore_index, sharded);
  const Head& h = in.head;
  const int64_t rows = hidden.size(0);
  R1_CHECK(kept_rows >= 0 && kept_rows <= rows + kRows, "linear_logprob: kept_rows: expected at most ",
           rows, " in whole blocks, got ", kept_rows);
  Tensor logprob = torch::stable::new_zeros(hidden, {rows}, ScalarType::Float);
  Tensor lse = torch::stable::new_zeros(hidden, {rows}, ScalarType::Float);
  Tensor entropy = torch::stable::new_zeros(hidden, {want_entropy ? rows : 0}, ScalarType::Float);
  Tensor dhidden =
      torch::stable::new_zeros(hidden, {frozen_head ? rows : 0, h.width}, ScalarType::Float);

  // First the rows that can get a gradient, then the rest.
  Order first(in), rest(in);
  for (int64_t t = 0; t < rows; ++t)
    if (!in.ignored(t)) (in.keeps(t) ? first : rest).add(t, in.target(t));
  const Kept kept = Kept::make(hidden, h, kept_rows, first.padded() / kRows);
  if (!frozen_head)
    for (int64_t t : rest.index) first.add(t, in.target(t));

  auto finish = [&](const Order& order, const Statistics* statistics, const float* target_logit) {
    for (int64_t i = 0; i < order.size(); ++i) {
      const Statistics& s = statistics[i / kRows];
      const int64_t t = order.index[i], lane = i % kRows;
      const float log_sum = std::log(s.sum[lane]);
      data<float>(lse)[t] = s.max[lane] + log_sum;
      data<float>(logprob)[t] = (target_logit[i] - s.max[lane]) - log_sum;
      if (want_entropy) data<float>(entropy)[t] = log_sum - s.weighted[lane] / s.sum[lane];
    }
  };
  auto forward_only = [&](Order& order) {
    if (order.size() == 0) return;
    Buffer<uint32_t> panels(order.padded() * h.units);
    Buffer<Statistics> statistics(kSplits * order.padded() / kRows);
    std::vector<float> target_logit(order.padded());  // zero where another shard has it
    pack_panels(order, panels.p);
    R1_DISPATCH(linear_logprob_forward)(Forward{h, order.rows(panels.p), want_entropy, statistics.p,
                                                target_logit.data(), kept.tiles(), kept.blocks,
                                                kept.stride});
    finish(order, statistics.p, target_logit.data());
  };
  if (!frozen_head) {
    forward_only(first);
    return {logprob, entropy, lse, kept.tensor, dhidden};
  }
  forward_only(rest);
  if (first.size() > 0) {
    const int64_t padded = first.padded();
    Buffer<uint32_t> panels(padded * h.units), packed(kStripe * h.lanes());
    Buffer<Statistics> statistics(padded / kRows);
    Buffer<float> expected(padded * h.lanes());
    std::vector<float> target_logit(padded);
    Buffer<float> logits(workers() * kStripe * kRows);
    Buffer<uint32_t> products(workers() * kStripe * kRows);
    pack_panels(first, panels.p);
    R1_DISPATCH(linear_logprob_frozen)(Frozen{h, first.rows(panels.p), want_entropy, statistics.p,
                                              target_logit.data(), expected.p, packed.p, logits.p,
                                              products.p});
    finish(first, statistics.p, target_logit.data());
    // dhidden = α·((1 - p_y)·w_y·W_y - Σ_{v≠y} p_v·w_v·W_v), w the slope of the softcap.
    parallel(first.size(), [&](int64_t i, int) {
      const int64_t t = first.index[i];
      const float alpha = h.logit_scale / in.temperature_of(t);
      const float rest_of_sum = alpha / statistics[i / kRows].sum[i % kRows];
      float* out = data<float>(dhidden) + t * h.width;
      for (int64_t j = 0; j < h.width; ++j) out[j] = -rest_of_sum * expected[i * h.lanes() + j];
      if (first.target[i] < 0) return;
      const float capped = h.softcap != 0 ? target_logit[i] / first.factor[i] : 0.0f;
      const float own = alpha * -std::expm1(data<float>(logprob)[t]) * (1 - capped * capped);
      const uint32_t* row = h.weight + first.target[i] * h.units;
      for (int64_t j = 0; j < h.width; ++j) {
        float w;
        if (h.bf16)
          w = scalar::bf16_to_float(reinterpret_cast<const uint16_t*>(row)[j]);
        else
          std::memcpy(&w, row + j, sizeof(w));
        out[j] += own * w;
      }
    });
  }
  return {logprob, entropy, lse, kept.tensor, dhidden};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "linear_logprob(Tensor hidden, Tensor weight, Tensor target, Tensor? bias, Tensor? keep, "
      "Tensor? temperature, float logit_scale, float? softcap, bool want_entropy, "
      "bool entropy_grad, int kept_rows, bool frozen_head, int ignore_index, bool sharded) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("linear_logprob", TORCH_BOX(&linear_logprob));
}
}  // namespace r1
#endif
