// policy_loss: loss, gradient and metrics of [T] numbers, a sequence at a time, in double.
//
// The head that makes these numbers does a million times as much work, so this is plain code for
// every machine. The formulas are those of r1kernels/ops/losses.py, in the same order.
#include "cpu/isa.h"

#ifdef R1_BASELINE
#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include "common/op.h"
#include "cpu/parallel.h"

namespace r1 {
namespace {
constexpr double kMaxLogRatio = 20.0;
constexpr int64_t kSerialRows = 8192, kTasks = 64;

struct Row {
  double logprob, log_ratio, advantage;
};
struct Clip {
  double epsilon, epsilon_high;
  std::optional<double> delta;
};
struct Term {
  double value, by_log_ratio, by_logprob;
  bool clipped;
};

Term ppo(const Row& row, const Clip& clip) {
  const double ratio = std::exp(row.log_ratio), a = row.advantage;
  const double low = 1 - clip.epsilon, high = 1 + clip.epsilon_high;
  const bool beyond = clip.delta && ratio > *clip.delta;
  const double free = (beyond ? *clip.delta : ratio) * a;
  const double clipped = (ratio < low ? low : ratio > high ? high : ratio) * a;
  const bool slope = free <= clipped ? !beyond : ratio >= low && ratio <= high;
  return {-(free <= clipped ? free : clipped), slope ? -a * ratio : 0.0, 0.0, !slope && a != 0};
}

Term cispo(const Row& row, const Clip& clip) {
  const double ratio = std::exp(row.log_ratio);
  const bool capped = ratio > clip.epsilon_high;
  const double by_logprob = -(capped ? clip.epsilon_high : ratio) * row.advantage;
  return {by_logprob * row.logprob, 0.0, by_logprob, capped && row.advantage != 0};
}

Term reinforce(const Row& row, const Clip&) {
  return {-row.advantage * row.logprob, 0.0, -row.advantage, false};
}

struct Divergence {
  double value, slope;
};
Divergence k1(double x) { return {-x, 1.0}; }
Divergence k2(double x) { return {x * x / 2, -x}; }
Divergence k3(double x) { return {std::expm1(x) - x, -std::expm1(x)}; }

template <class Function>
struct Named {
  const char* name;
  Function* function;
};
constexpr Named<Term(const Row&, const Clip&)> kSurrogates[] = {
    {"ppo", ppo}, {"cispo", cispo}, {"reinforce", reinforce}};
constexpr Named<Divergence(double)> kEstimators[] = {{"k1", k1}, {"k2", k2}, {"k3", k3}};

template <class Entry, size_t count>
auto find(const Entry (&table)[count], const char* what, const std::string& name) {
  for (const Entry& entry : table)
    if (name == entry.name) return entry.function;
  fail("policy_loss: ", what, ": unknown ", name);
}

// log a - log b, bounded; `inside` where its derivative is 1.
struct Difference {
  double value;
  bool inside;
  Difference(double a, double b) : value(a - b), inside(!(std::fabs(value) > kMaxLogRatio)) {
    if (!inside) value = value > 0 ? kMaxLogRatio : -kMaxLogRatio;
  }
};

double larger(double a, double b) { return b > a || b != b ? b : a; }

struct Sums {  // over the active rows of a sequence, or of all
  double loss = 0, policy = 0, kl = 0, entropy = 0, clipped = 0, ratio = 0, ratio_max = 0;
  double drift = 0, drift_max = 0, active = 0;

  void operator+=(const Sums& o) {
    loss += o.loss, policy += o.policy, kl += o.kl, entropy += o.entropy, clipped += o.clipped;
    ratio += o.ratio, drift += o.drift, active += o.active;
    ratio_max = larger(ratio_max, o.ratio_max), drift_max = larger(drift_max, o.drift_max);
  }
};

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
    Tensor logprob, Tensor advantages, Tensor cu_seqlens, OptionalTensor old_logprob,
    OptionalTensor ref_logprob, OptionalTensor sampling_logprob, OptionalTensor mask,
    OptionalTensor entropy, OptionalTensor denominator, OptionalTensor num_active_tokens,
    std::string surrogate, std::string level, bool sequence_mean, double epsilon,
    double epsilon_high, std::optional<double> delta, double beta, std::string kl_estimator,
    double entropy_coef) {
  const int64_t rows = logprob.numel(), sequences = cu_seqlens.numel() - 1;
  const bool per_sequence = advantages.numel() == sequences, by_sequence = level == "sequence";
  const auto term_of = find(kSurrogates, "surrogate", surrogate);
  const auto kl_of = find(kEstimators, "kl_estimator", kl_estimator);
  const Clip clip{epsilon, epsilon_high, delta};

  std::vector<Tensor> held;
  const float* now = pointer<float>(held, "logprob", logprob, rows);
  const float* given =
      pointer<float>(held, "advantages", advantages, per_sequence ? sequences : rows);
  const float* old = old_logprob ? pointer<float>(held, "old_logprob", old_logprob, rows) : now;
  const float* ref = pointer<float>(held, "ref_logprob", ref_logprob, rows);
  const float* sampled = pointer<float>(held, "sampling_logprob", sampling_logprob, rows);
  const float* h = pointer<float>(held, "entropy", entropy, rows);
  const bool* active = pointer<bool>(held, "mask", mask, rows);
  const float* divisor = pointer<float>(held, "denominator", denominator, 1);
  const float* step_tokens = pointer<float>(held, "num_active_tokens", num_active_tokens, 1);
  const Tensor offsets = to_dtype(cu_seqlens, ScalarType::Long);
  const int64_t* cu = data<int64_t>(offsets);
  R1_CHECK(sequences >= 0, "policy_loss: cu_seqlens: expected at least one element, got none");
  for (int64_t b = 0; b < sequences; ++b)
    R1_CHECK(cu[b] >= 0 && cu[b] <= cu[b + 1] && cu[b + 1] <= rows,
             "policy_loss: cu_seqlens: expected non-decreasing offsets up to ", rows);

  double tokens = rows;
  if (active) {
    int64_t count = 0;
    for (int64_t t = 0; t < rows; ++t) count += active[t];
    tokens = static_cast<double>(count);
  }
  const double total = divisor ? *divisor : sequence_mean ? sequences : tokens;
  const double share = 1 / (step_tokens ? *step_tokens : tokens);

  Tensor loss = new_empty(logprob, {}, ScalarType::Float);
  Tensor grad = new_empty(logprob, {rows}, ScalarType::Float);
  Tensor grad_entropy = new_empty(logprob, {h ? rows : 0}, ScalarType::Float);
  Tensor metrics = new_empty(logprob, {9}, ScalarType::Float);
  float *dlogprob = data<float>(grad), *dentropy = data<float>(grad_entropy);
  std::vector<Sums> parts(sequences);

  auto run_sequence = [&](int64_t b) {
    const int64_t begin = cu[b], end = cu[b + 1];
    auto counts = [&](int64_t t) { return !active || active[t]; };
    Sums& sums = parts[b];
    double mean_log_ratio = 0;
    for (int64_t t = begin; t < end; ++t) {
      if (!counts(t)) continue;
      sums.active += 1;
      if (by_sequence) mean_log_ratio += Difference(now[t], old[t]).value;
    }
    mean_log_ratio /= sums.active;
    const double w = 1 / (sequence_mean ? total * sums.active : total);

    double chain = 0;  // Σ ∂loss/∂(log ratio of the sequence)
    for (int64_t t = begin; t < end; ++t) {
      if (h) dentropy[t] = counts(t) ? -entropy_coef * share : 0.0;
      if (!counts(t)) {
        dlogprob[t] = 0;
        continue;
      }
      const Difference own(now[t], old[t]);
      const double log_ratio = by_sequence ? mean_log_ratio : own.value;
      const Term term = term_of({now[t], log_ratio, given[per_sequence ? b : t]}, clip);
      double g = w * term.by_logprob;
      if (by_sequence) chain += w * term.by_log_ratio;
      else if (own.inside) g += w * term.by_log_ratio;
      sums.policy += w * term.value;
      sums.loss += w * term.value;
      sums.clipped += term.clipped;
      const double ratio = std::exp(log_ratio);
      sums.ratio += ratio;
      sums.ratio_max = larger(sums.ratio_max, ratio);
      if (ref) {
        const Difference x(ref[t], now[t]);
        const Divergence kl = kl_of(x.value);
        if (x.inside) g += beta * w * kl.slope;
        sums.loss += beta * w * kl.value;
        sums.kl += kl.value;
      }
      if (sampled) {
        const double drift = std::fabs(old[t] - sampled[t]);
        sums.drift += drift;
        sums.drift_max = larger(sums.drift_max, drift);
      }
      if (h) {
        sums.loss -= entropy_coef * share * h[t];
        sums.entropy += h[t];
      }
      dlogprob[t] = static_cast<float>(g);
    }
    if (by_sequence)
      for (int64_t t = begin; t < end; ++t)
        if (counts(t) && Difference(now[t], old[t]).inside)
          dlogprob[t] += static_cast<float>(chain / sums.active);
  };
  // A few sequences are done before a second thread has woken up.
  const int64_t tasks = rows < kSerialRows ? 1 : std::min(sequences, kTasks);
  parallel(tasks, [&](int64_t task, int) {
    for (int64_t b = sequences * task / tasks; b < sequences * (task + 1) / tasks; ++b)
      run_sequence(b);
  });

  Sums all;
  for (const Sums& part : parts) all += part;
  *data<float>(loss) = static_cast<float>(all.loss);
  const double n = tokens > 0 ? tokens : 1;
  const double values[] = {all.policy, all.kl / n, all.entropy / n, all.clipped / n, all.ratio / n,
                           all.ratio_max, all.drift / n, all.drift_max, tokens};
  for (int i = 0; i < 9; ++i) data<float>(metrics)[i] = static_cast<float>(values[i]);
  return {loss, grad, grad_entropy, metrics};
}
}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(r1_cpp, m) {
  m.def(
      "policy_loss(Tensor logprob, Tensor advantages, Tensor cu_seqlens, Tensor? old_logprob, "
      "Tensor? ref_logprob, Tensor? sampling_logprob, Tensor? mask, Tensor? entropy, "
      "Tensor? denominator, Tensor? num_active_tokens, str surrogate, str level, "
      "bool sequence_mean, float epsilon, float epsilon_high, float? delta, float beta, "
      "str kl_estimator, float entropy_coef) -> (Tensor, Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(r1_cpp, CPU, m) { m.impl("policy_loss", TORCH_BOX(&policy_loss)); }
}  // namespace r1
#endif
