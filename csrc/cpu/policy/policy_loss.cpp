// policy_loss: loss, gradient and metrics of [T] numbers, the sequences shared out to threads.
#include "cpu/common/isa.h"

#ifdef R1_BASELINE
#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "common/op.h"
#include "common/text.h"
#include "cpu/policy/group_advantage.h"
#include "cpu/common/parallel.h"
#include "cpu/policy/policy_loss.h"

R1_DECLARE(void policy_loss_sequence(const PolicyLoss&, int64_t, PolicyLossSums*))

namespace r1 {
namespace {
constexpr int64_t kSerialRows = 8192, kTasks = 64;

constexpr const char* kLevelNames[] = {"token", "sequence", "sequence_token", "sequence_sum"};
constexpr const char* kRolloutNames[] = {"none", "token_truncate", "token_mask",
                                         "sequence_truncate", "sequence_mask"};

template <size_t count>
int find(const char* const (&names)[count], const char* what, const std::string& name) {
  for (size_t i = 0; i < count; ++i)
    if (name == names[i]) return static_cast<int>(i);
  fail("policy_loss: ", what, ": unknown ", name);
}

double larger(double a, double b) { return b > a || b != b ? b : a; }

void add(PolicyLossSums& s, const PolicyLossSums& o) {
  s.policy += o.policy, s.penalty += o.penalty, s.kl += o.kl, s.entropy += o.entropy;
  s.clipped += o.clipped, s.ratio += o.ratio, s.drift += o.drift, s.rollout += o.rollout;
  s.dropped += o.dropped, s.active += o.active;
  s.ratio_max = larger(s.ratio_max, o.ratio_max), s.drift_max = larger(s.drift_max, o.drift_max);
}

using OptionalTensor = std::optional<Tensor>;

// An argument as plain memory, which `held` keeps alive; null when it is absent.
template <class T>
const T* pointer(std::vector<Tensor>& held, const char* name, const OptionalTensor& t,
                 int64_t count) {
  if (!t) return nullptr;
  const bool flag = std::is_same_v<T, bool>;
  R1_CHECK(t->scalar_type() == (flag ? ScalarType::Bool : ScalarType::Float) && t->numel() == count,
           "policy_loss: ", name, ": expected ", flag ? "bool" : "float32", ", ", count,
           " elements; got ", t->numel());
  held.push_back(dense(*t));
  return data<T>(held.back());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> policy_loss(
    Tensor logprob, Tensor advantages, Tensor cu_seqlens, OptionalTensor group_ids,
    OptionalTensor old_logprob, OptionalTensor ref_logprob, OptionalTensor sampling_logprob,
    OptionalTensor mask, OptionalTensor selected, OptionalTensor entropy,
    OptionalTensor denominator, OptionalTensor num_active_tokens, Text surrogate,
    std::vector<double> options, Text level, bool sequence_mean, double beta, Text kl_estimator,
    bool use_bias_correction_kl, double entropy_coef, Text rollout_correction, double rollout_clip_min,
    double rollout_clip_max, double off_policy_mask_threshold, Text scale, Text baseline, double eps) {
  const int64_t rows = logprob.numel(), sequences = cu_seqlens.numel() - 1;
  R1_CHECK(sequences >= 0, "policy_loss: cu_seqlens: expected at least one element, got none");
  R1_CHECK(options.size() <= 8, "policy_loss: options: expected at most 8, got ", options.size());
  if (group_ids)
    advantages = group_advantage(advantages, *group_ids, std::nullopt, scale, baseline, eps);
  const Tensor offsets = to_dtype(cu_seqlens, ScalarType::Long);

  std::vector<Tensor> held;
  PolicyLoss p{};
  p.cu_seqlens = data<int64_t>(offsets);
  for (int64_t b = 0; b < sequences; ++b)
    R1_CHECK(p.cu_seqlens[b] >= 0 && p.cu_seqlens[b] <= p.cu_seqlens[b + 1] &&
                 p.cu_seqlens[b + 1] <= rows,
             "policy_loss: cu_seqlens: expected non-decreasing offsets up to ", rows);
  p.advantage_per_sequence = advantages.numel() == sequences;
  p.logprob = pointer<float>(held, "logprob", logprob, rows);
  p.old_logprob = pointer<float>(held, "old_logprob", old_logprob, rows);
  if (!old_logprob) p.old_logprob = p.logprob;
  p.advantages = pointer<float>(held, "advantages", advantages,
                                p.advantage_per_sequence ? sequences : rows);
  p.ref_logprob = pointer<float>(held, "ref_logprob", ref_logprob, rows);
  p.sampling_logprob = pointer<float>(held, "sampling_logprob", sampling_logprob, rows);
  p.entropy = pointer<float>(held, "entropy", entropy, rows);
  p.mask = pointer<bool>(held, "mask", mask, rows);
  p.selected = pointer<bool>(held, "selected", selected, rows);
  const float* divisor = pointer<float>(held, "denominator", denominator, 1);
  const float* step_tokens = pointer<float>(held, "num_active_tokens", num_active_tokens, 1);
  p.surrogate = surrogate_named(surrogate.c_str());
  p.estimator = estimator_named(kl_estimator.c_str());
  R1_CHECK(p.surrogate >= 0, "policy_loss: surrogate: unknown ", surrogate);
  R1_CHECK(p.estimator >= 0, "policy_loss: kl_estimator: unknown ", kl_estimator);
  p.gmpo = surrogate == "gmpo";
  p.level = static_cast<RatioLevel>(find(kLevelNames, "level", level));
  p.rollout =
      static_cast<Rollout>(find(kRolloutNames, "rollout_correction", rollout_correction));
  std::copy(options.begin(), options.end(), p.options);
  p.rollout_min = static_cast<float>(rollout_clip_min);
  p.rollout_max = static_cast<float>(rollout_clip_max);
  p.off_policy_threshold = static_cast<float>(off_policy_mask_threshold);
  p.sequence_mean = sequence_mean, p.correct_kl = use_bias_correction_kl;
  p.beta = beta, p.entropy_coef = entropy_coef;

  const double tokens = p.mask ? std::count(p.mask, p.mask + rows, true) : rows;
  p.total = divisor ? *divisor : sequence_mean ? sequences : tokens;
  p.entropy_weight = 1 / (step_tokens ? *step_tokens : tokens);
  Tensor loss = new_empty(logprob, {}, ScalarType::Float);
  Tensor grad = new_empty(logprob, {rows}, ScalarType::Float);
  Tensor grad_entropy = new_empty(logprob, {p.entropy ? rows : 0}, ScalarType::Float);
  Tensor metrics = new_empty(logprob, {11}, ScalarType::Float);
  p.grad = data<float>(grad), p.grad_entropy = data<float>(grad_entropy);

  std::vector<PolicyLossSums> parts(sequences);
  const auto kernel = R1_DISPATCH(policy_loss_sequence);
  // A few sequences are done before a second thread has woken up.
  const int64_t tasks = rows < kSerialRows ? 1 : std::min(sequences, kTasks);
  parallel(tasks, [&](int64_t task, int) {
    for (int64_t b = sequences * task / tasks; b < sequences * (task + 1) / tasks; ++b)
      kernel(p, b, &parts[b]);
  });

  PolicyLossSums all{};
  for (const PolicyLossSums& part : parts) add(all, part);
  double value = all.policy;
  if (p.ref_logprob) value += beta * all.penalty;
  if (p.entropy && tokens > 0) value -= entropy_coef * p.entropy_weight * all.entropy;
  *data<float>(loss) = static_cast<float>(value);
  const double n = tokens > 0 ? tokens : 1;
  const double values[] = {all.policy, all.kl / n, all.entropy / n, all.clipped / n, all.ratio / n,
                           all.ratio_max, all.drift / n, all.drift_max, all.rollout / n,
                           all.dropped / n, tokens};
  std::copy(std::begin(values), std::end(values), data<float>(metrics));
  return {loss, grad, grad_entropy, metrics};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "policy_loss(Tensor logprob, Tensor advantages, Tensor cu_seqlens, Tensor? group_ids, "
      "Tensor? old_logprob, Tensor? ref_logprob, Tensor? sampling_logprob, Tensor? mask, "
      "Tensor? selected, Tensor? entropy, Tensor? denominator, Tensor? num_active_tokens, "
      "str surrogate, float[] options, str level, bool sequence_mean, float beta, "
      "str kl_estimator, bool use_bias_correction_kl, float entropy_coef, "
      "str rollout_correction, float rollout_clip_min, float rollout_clip_max, "
      "float off_policy_mask_threshold, str scale, str baseline, float eps) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) { m.impl("policy_loss", TORCH_BOX(&policy_loss)); }
}  // namespace r1
#endif
