// Gradient of moe_route's logits: that of the weights through the normaliser, then through the
// scores, a row at a time in float64.
#include "cpu/moe/route_scores.h"

namespace r1 {
struct MoeRouteBackward {
  Scoring scoring;
  const float* grad;   // [rows, top_k]
  const int64_t* ids;  // [rows, top_k]
  void* dlogits;       // [rows, experts], of the logits' type

  int64_t room() const { return 2 * padded(scoring.experts) + 3 * padded(scoring.top_k); }
};
}  // namespace r1

namespace r1::R1_ISA {
namespace {
// Makes gradients of the chosen scores from those of the weights. Returns Σ ds·s.
double through_the_normaliser(const Scoring& s, const int64_t* ids, const float* grad,
                              const double* scores, double sum, double* ds) {
  double inner = 0;
  for (int64_t j = 0; j < s.top_k; ++j) {
    ds[j] = names_expert(s, ids[j]) ? grad[j] * s.scale : 0;
    inner += ds[j] * scores[j];
  }
  if (!s.normalises) return inner;
  const double total = sum + kEpsilon, common = inner / total;
  inner = 0;
  for (int64_t j = 0; j < s.top_k; ++j) {
    ds[j] = names_expert(s, ids[j]) ? (ds[j] - common) / total : 0;
    inner += ds[j] * scores[j];
  }
  return inner;
}

void store_gradient(const MoeRouteBackward& b, int64_t row, const double* dz) {
  const int64_t experts = b.scoring.experts, at = row * experts;
  if (b.scoring.bf16) {
    auto* out = static_cast<uint16_t*>(b.dlogits) + at;
    for (int64_t i = 0; i < experts; ++i) out[i] = float_to_bf16(static_cast<float>(dz[i]));
  } else {
    auto* out = static_cast<float*>(b.dlogits) + at;
    for (int64_t i = 0; i < experts; ++i) out[i] = static_cast<float>(dz[i]);
  }
}
}  // namespace

void moe_route_backward_rows(const MoeRouteBackward& b, int64_t begin, int64_t end,
                             double* scratch) {
  const Scoring& s = b.scoring;
  const int64_t room = padded(s.experts), padded_k = padded(s.top_k);
  double *z = scratch, *dz = z + room;
  double *chosen = dz + room, *scores = chosen + padded_k, *ds = scores + padded_k;
  const bool of_whole_row = s.score == Score::softmax && !s.of_chosen;
  Softmax softmax{};
  for (int64_t t = begin; t < end; ++t) {
    const int64_t* ids = b.ids + t * s.top_k;
    if (of_whole_row) {
      load_logits(s, t, z);
      softmax = softmax_of(z, room);
    }
    for (int64_t j = 0; j < s.top_k; ++j)
      if (names_expert(s, ids[j])) chosen[j] = logit_at(s, t * s.experts + ids[j]);
    const double sum = scores_of_choices(s, softmax, ids, chosen, scores);
    const double inner =
        through_the_normaliser(s, ids, b.grad + t * s.top_k, scores, sum, ds);

    for (int64_t i = 0; i < room; ++i) dz[i] = 0;
    if (s.score == Score::sqrtsoftplus)
      for (int64_t j = 0; j < padded_k; j += kDoubles)
        store_double(chosen + j, sigmoid(load_double(chosen + j)));
    for (int64_t j = 0; j < s.top_k; ++j) {
      if (!names_expert(s, ids[j])) continue;
      const double p = scores[j];
      double g = ds[j];
      if (s.score == Score::sigmoid) g *= p * (1 - p);
      else if (s.score == Score::sqrtsoftplus) g = p > 0 ? g * chosen[j] / (2 * p) : 0;
      else if (s.of_chosen) g = p * (g - inner);
      dz[ids[j]] += g;
    }
    if (of_whole_row)
      for (int64_t i = 0; i < room; i += kDoubles)
        store_double(dz + i, softmax(load_double(z + i)) * (load_double(dz + i) - inner));
    store_gradient(b, t, dz);
  }
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
#include <algorithm>
#include <string>

#include "common/op.h"
#include "common/text.h"
#include "cpu/moe/route_scoring.h"
#include "cpu/common/parallel.h"
#include "cpu/common/rows.h"

R1_DECLARE(void moe_route_backward_rows(const MoeRouteBackward&, int64_t, int64_t, double*))

namespace r1 {
namespace {
constexpr int64_t kTaskRows = 64;

Tensor moe_route_backward(Tensor grad, Tensor logits, Tensor ids, Text score, Text order,
                          bool normalize, double scale) {
  R1_CHECK(ids.dim() == 2 && ids.size(0) == logits.size(0) && grad.numel() == ids.numel(),
           "moe_route_backward: grad, ids: expected shape [T, k]");
  const Tensor rows = dense(logits), gradient = to_dtype(grad, ScalarType::Float);
  const Tensor choices = to_dtype(ids, ScalarType::Long);
  Tensor dlogits = new_empty(logits, {logits.size(0), logits.size(1)}, logits.scalar_type());
  MoeRouteBackward b{};
  b.scoring =
      scoring_of("moe_route_backward", rows, ids.size(1), score, order, normalize, scale);
  b.grad = data<float>(gradient), b.ids = data<int64_t>(choices), b.dlogits = dlogits.data_ptr();

  const int64_t count = b.scoring.rows, room = b.room();
  const int64_t tasks = (count + kTaskRows - 1) / kTaskRows;
  Buffer<double> scratch(room * std::min<int64_t>(workers(), tasks));
  const auto kernel = R1_DISPATCH(moe_route_backward_rows);
  parallel(tasks, [&](int64_t task, int worker) {
    kernel(b, task * kTaskRows, std::min((task + 1) * kTaskRows, count), scratch.p + worker * room);
  });
  return dlogits;
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "moe_route_backward(Tensor grad, Tensor logits, Tensor ids, str score, str order, "
      "bool normalize, float scale) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("moe_route_backward", TORCH_BOX(&moe_route_backward));
}
}  // namespace r1
#endif
