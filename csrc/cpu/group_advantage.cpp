// group_advantage: a few thousand numbers at most, so plain code for every machine.
#include "cpu/isa.h"

#ifdef R1_BASELINE
#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "common/op.h"

namespace r1 {
namespace {
Tensor group_advantage(Tensor rewards, Tensor group_ids, std::string scale, std::string baseline,
                       double eps) {
  const int64_t count = rewards.numel();
  R1_CHECK(rewards.scalar_type() == ScalarType::Float && rewards.dim() == 1,
           "group_advantage: rewards: expected float32 of shape [B]");
  R1_CHECK(group_ids.dim() == 1 && group_ids.numel() == count,
           "group_advantage: group_ids: expected shape [", count, "]");
  const Tensor values = dense(rewards), ids = to_dtype(group_ids, ScalarType::Long);
  const float* r = data<float>(values);
  const int64_t* group = data<int64_t>(ids);
  Tensor out = new_empty(rewards, {count}, ScalarType::Float);
  float* advantage = data<float>(out);

  // Sums over sorted rewards do not depend on the order of the batch.
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return r[a] < r[b]; });
  double batch_deviation = 0;
  if (count > 1) {
    double sum = 0, squares = 0;
    for (int64_t i : order) sum += r[i];
    for (int64_t i : order) squares += (r[i] - sum / count) * (r[i] - sum / count);
    batch_deviation = std::sqrt(squares / (count - 1));
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return group[a] < group[b]; });

  for (int64_t begin = 0, end; begin < count; begin = end) {
    double sum = 0, squares = 0;
    for (end = begin; end < count && group[order[end]] == group[order[begin]]; ++end)
      sum += r[order[end]];
    const double size = static_cast<double>(end - begin), mean = sum / size;
    const bool constant = r[order[begin]] == r[order[end - 1]];
    for (int64_t i = begin; i < end; ++i)
      squares += (r[order[i]] - mean) * (r[order[i]] - mean);
    double factor = baseline == "rloo" ? size / (size - 1) : 1.0;
    if (scale == "group") factor /= std::sqrt(squares / (size - 1)) + eps;
    if (scale == "batch") factor /= batch_deviation + eps;
    for (int64_t i = begin; i < end; ++i)
      advantage[order[i]] =
          constant ? 0.0f : static_cast<float>((r[order[i]] - mean) * factor);
  }
  return out;
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "group_advantage(Tensor rewards, Tensor group_ids, str scale, str baseline, float eps) "
      "-> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) {
  m.impl("group_advantage", TORCH_BOX(&group_advantage));
}
}  // namespace r1
#endif
