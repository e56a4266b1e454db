// moe_route: rows shared out to threads, then moe_sort of the choices.
#include "cpu/common/isa.h"

#ifdef R1_BASELINE
#include <algorithm>
#include <string>
#include <vector>

#include "common/op.h"
#include "common/text.h"
#include "cpu/moe/route.h"
#include "cpu/moe/route_scoring.h"
#include "cpu/moe/sort.h"
#include "cpu/common/parallel.h"
#include "cpu/common/rows.h"

R1_DECLARE(int64_t moe_route_room(const MoeRoute&))
R1_DECLARE(void moe_route_rows(const MoeRoute&, int64_t, int64_t, double*))

namespace r1 {
constexpr int64_t kTaskRows = 64, kBlock = 32;

Scoring scoring_of(const char* op, const Tensor& logits, int64_t top_k, const std::string& score,
                   const std::string& order, bool normalize, double scale) {
  R1_CHECK(logits.dim() == 2 && logits.is_contiguous(), op, ": logits: expected shape [T, E]");
  R1_CHECK(is_bf16(logits) || logits.scalar_type() == ScalarType::Float, op,
           ": logits: expected float32 or bfloat16");
  R1_CHECK(order == "score_first" || order == "topk_first", op, ": order: unknown ", order);
  Scoring s{};
  s.logits = logits.data_ptr();
  s.bf16 = is_bf16(logits);
  s.rows = logits.size(0), s.experts = logits.size(1), s.top_k = top_k;
  if (score == "sigmoid") s.score = Score::sigmoid;
  else if (score == "softmax") s.score = Score::softmax;
  else if (score == "sqrtsoftplus") s.score = Score::sqrtsoftplus;
  else fail(op, ": score: unknown ", score);
  s.of_chosen = order == "topk_first";
  s.normalises = normalize && !(s.score == Score::softmax && s.of_chosen);
  s.scale = scale;
  return s;
}

namespace {
Blocks blocks_of(int64_t experts, int64_t groups, bool choose_groups) {
  const int64_t size = choose_groups ? experts / groups : std::min(kBlock, padded(experts));
  return {size, padded(size), (experts + size - 1) / size};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> moe_route(
    Tensor logits, int64_t top_k, Text score, Text order, OptionalTensor bias,
    int64_t num_groups, int64_t top_k_groups, bool normalize, double scale,
    OptionalTensor replay_ids, OptionalTensor num_valid, int64_t align) {
  const Tensor rows = dense(logits);
  MoeRoute r{};
  r.scoring = scoring_of("moe_route", rows, top_k, score, order, normalize, scale);
  const Scoring& s = r.scoring;
  R1_CHECK(num_groups > 0 && s.experts % num_groups == 0 && top_k_groups > 0 &&
               top_k_groups <= num_groups && top_k > 0 &&
               top_k <= top_k_groups * (s.experts / num_groups),
           "moe_route: top_k: expected at most the experts in ", top_k_groups, " of ", num_groups,
           " groups of ", s.experts, ", got ", top_k);
  const bool by_logits = s.of_chosen || (!bias && (num_groups == 1 || s.score == Score::softmax));
  r.by_score = !by_logits;
  r.pairs = !s.of_chosen && s.score != Score::softmax;
  r.groups_used = top_k_groups < num_groups ? top_k_groups : 0;
  r.blocks = blocks_of(s.experts, num_groups, r.groups_used > 0);

  std::vector<double> padded_bias;
  if (bias) {
    R1_CHECK(bias->numel() == s.experts, "moe_route: bias: expected shape [", s.experts, "]");
    const Tensor values = to_dtype(*bias, ScalarType::Float);
    padded_bias.assign(data<float>(values), data<float>(values) + s.experts);
    padded_bias.resize(r.logits_room());
    r.bias = padded_bias.data();
  }
  Tensor replay = rows;
  if (replay_ids) {
    R1_CHECK(replay_ids->numel() == s.rows * top_k, "moe_route: replay_ids: expected shape [",
             s.rows, ", ", top_k, "]");
    replay = to_dtype(*replay_ids, ScalarType::Long);
    r.replay_ids = data<int64_t>(replay);
  }
  r.valid_rows = s.rows;
  if (num_valid) {
    expect_numel("moe_route", "num_valid", *num_valid, 1);
    const Tensor count = to_dtype(*num_valid, ScalarType::Long);
    r.valid_rows = std::clamp<int64_t>(*data<int64_t>(count), 0, s.rows);
  }
  Tensor weights = new_empty(logits, {s.rows, top_k}, ScalarType::Float);
  Tensor ids = new_empty(logits, {s.rows, top_k}, ScalarType::Long);
  r.weights = data<float>(weights), r.ids = data<int64_t>(ids);

  const int64_t room = R1_DISPATCH(moe_route_room)(r);
  const int64_t tasks = (s.rows + kTaskRows - 1) / kTaskRows;
  Buffer<double> scratch(room * std::min<int64_t>(workers(), tasks));
  const auto kernel = R1_DISPATCH(moe_route_rows);
  parallel(tasks, [&](int64_t task, int worker) {
    const int64_t begin = task * kTaskRows;
    kernel(r, begin, std::min(begin + kTaskRows, s.rows), scratch.p + worker * room);
  });

  if (align == 0) {
    const auto none = [&] { return new_empty(logits, {0}, ScalarType::Int); };
    return {weights, ids, none(), none(), none(), none()};
  }
  auto [counts, offsets, gather, inverse] = moe_sort(ids, s.experts, align);
  return {weights, ids, counts, offsets, gather, inverse};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "moe_route(Tensor logits, SymInt top_k, str score, str order, Tensor? bias, "
      "SymInt num_groups, SymInt top_k_groups, bool normalize, float scale, Tensor? replay_ids, "
      "Tensor? num_valid, SymInt align) -> (Tensor weights, Tensor ids, Tensor counts, "
      "Tensor offsets, Tensor gather, Tensor inverse)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) { m.impl("moe_route", TORCH_BOX(&moe_route)); }
}  // namespace r1
#endif
