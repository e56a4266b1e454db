// policy_loss of one sequence at a time: fp32 vectors, sums in double in a fixed order. The algebra
// of the losses is r1kernels/policy/surrogates.py, translated by the build.
#include "cpu/policy/policy_loss.h"

#include "cpu/common/simd.h"

namespace r1::R1_ISA {
namespace {
typedef double D __attribute__((vector_size(8 * kWidth)));
typedef uint8_t Bytes __attribute__((vector_size(kWidth)));

struct Two {
  F value, slope;
};
struct Four {
  F value, by_log_ratio, by_logprob, clipped;
};
struct Row {
  F logprob, old_logprob, log_ratio, advantage, selected;
};

inline F where(I condition, F a, F b) { return condition ? a : b; }
inline F maximum(F a, F b) { return (a > b) | (a != a) ? a : b; }  // NaN if either is, as PyTorch
inline F minimum(F a, F b) { return (a < b) | (a != a) ? a : b; }
inline F sigmoid(F x) { return splat(1.0f) / (splat(1.0f) + exp(-x)); }
#include "surrogates.h"

constexpr float kMaxLogRatio = 20.0f, kMinLogSum = -18.420680743952367f;  // ln 1e-8
inline F bounded(F x) { return minimum(maximum(x, splat(-kMaxLogRatio)), splat(kMaxLogRatio)); }
inline F difference_of(F a, F b) { return where(a == b, F{}, a - b); }  // of two -inf too
// weight·value, where a row without weight counts for nothing, however infinite it is.
inline F weighted(F weight, F value) {
  const I infinite = maximum(value, -value) == splat(__builtin_inff());
  return where((weight == F{}) & infinite, F{}, weight * value);
}

struct Sum {
  D lanes{};
  void operator+=(F v) { lanes += __builtin_convertvector(v, D); }
  double total() const {
    double sum = 0;
    for (int i = 0; i < kWidth; ++i) sum += lanes[i];
    return sum;
  }
};
struct Largest {
  F lanes{};
  void operator+=(F v) { lanes = maximum(lanes, v); }
  double total() const {
    double largest = 0;
    for (int i = 0; i < kWidth; ++i)
      if (largest == largest && !(lanes[i] <= largest)) largest = lanes[i];
    return largest;
  }
};

// Rows [t, t + kWidth) of which `count` belong to the sequence; zero where they are not active.
struct Lanes {
  F active, logprob, old_logprob, own, slope, advantage, cut, drift;
  I known;  // active, and the sampler did say
};

inline F read(const float* p, int64_t t, int64_t count) {
  if (count >= kWidth) return load(p + t);
  F v{};
  memcpy(&v, p + t, count * sizeof(float));
  return v;
}

inline F flags(const bool* p, int64_t t, int64_t count) {
  Bytes v{};
  memcpy(&v, p + t, count >= kWidth ? kWidth : count);
  return __builtin_convertvector(__builtin_convertvector(v, I), F);
}

inline void write(float* p, int64_t t, int64_t count, F v) {
  memcpy(p + t, &v, (count >= kWidth ? kWidth : count) * sizeof(float));
}

inline Lanes lanes_at(const PolicyLoss& p, int64_t b, int64_t t, int64_t count) {
  Lanes l;
  l.active = splat(1.0f);
  for (int64_t i = count; i < kWidth; ++i) l.active[i] = 0;
  if (p.mask) l.active = flags(p.mask, t, count);
  const I active = l.active > F{};
  l.logprob = where(active, read(p.logprob, t, count), F{});
  l.old_logprob = where(active, read(p.old_logprob, t, count), F{});
  l.advantage = p.advantage_per_sequence ? splat(p.advantages[b]) : read(p.advantages, t, count);
  l.advantage = where(active, l.advantage, F{});
  const F difference = difference_of(l.logprob, l.old_logprob);
  l.own = bounded(difference);
  l.slope = where(l.own == difference, splat(1.0f), F{});
  l.cut = F{};
  if (p.gmpo) {
    const Two clipped =
        gmpo_log_ratio(l.own, l.advantage, splat(p.options[0]), splat(p.options[1]));
    l.own = clipped.value;
    l.slope = l.slope * clipped.slope;
    l.cut = where(l.advantage == F{}, F{}, splat(1.0f) - clipped.slope);
  }
  l.known = active;
  l.drift = F{};
  if (p.sampling_logprob) {
    const F sampling = read(p.sampling_logprob, t, count);
    l.known = active & (sampling == sampling);
    l.drift = where(l.known, bounded(difference_of(l.old_logprob, sampling)), F{});
  }
  return l;
}

inline F weight_of(const PolicyLoss& p, F drift) {
  const F weight = exp(drift);
  const F least = splat(p.rollout_min), most = splat(p.rollout_max);
  if (p.rollout == Rollout::token_truncate || p.rollout == Rollout::sequence_truncate)
    return minimum(maximum(weight, least), most);
  return where((weight < least) | (weight > most), F{}, weight);
}

// What the rows of a sequence share.
struct Shared {
  double active = 0, log_ratio = 0, drift = 0, away = 0;
};

Shared shared_of(const PolicyLoss& p, int64_t b, bool off_policy) {
  Sum active, log_ratio, drift, away;
  const float* behaviour = p.sampling_logprob ? p.sampling_logprob : p.old_logprob;
  for (int64_t t = p.cu_seqlens[b], end = p.cu_seqlens[b + 1]; t < end; t += kWidth) {
    const Lanes l = lanes_at(p, b, t, end - t);
    active += l.active;
    log_ratio += l.own;
    drift += l.drift;
    if (p.level == RatioLevel::sequence_sum && p.rollout != Rollout::none) {
      const F weight = weight_of(p, l.drift);
      const F least = splat(kMinLogSum);
      const F correction = where(weight <= F{}, least, maximum(log(weight), least));
      log_ratio += where(l.active > F{}, correction, F{});
    }
    if (off_policy)
      away += where(l.known, bounded(difference_of(read(behaviour, t, end - t), l.logprob)), F{});
  }
  return {active.total(), log_ratio.total(), drift.total(), away.total()};
}

using Surrogate = Four (*)(const Row&, const F*);
using Estimator = Two (*)(F);
#define R1_ROW(name) name##_row,
#define R1_NAME(name) name,
constexpr Surrogate kSurrogates[] = {R1_SURROGATES(R1_ROW)};
constexpr Estimator kEstimators[] = {R1_ESTIMATORS(R1_NAME)};

float clamped(double x, double low, double high) {
  return static_cast<float>(x < low ? low : x > high ? high : x);
}
}  // namespace

void policy_loss_sequence(const PolicyLoss& p, int64_t b, PolicyLossSums* sums) {
  const int64_t begin = p.cu_seqlens[b], end = p.cu_seqlens[b + 1];
  const bool off_policy = p.off_policy_threshold < __builtin_inff();
  const bool by_sequence = p.rollout >= Rollout::sequence_truncate;
  Shared shared;
  if (p.level != RatioLevel::token || p.sequence_mean || by_sequence || off_policy)
    shared = shared_of(p, b, off_policy);
  const double length = shared.active > 1 ? shared.active : 1;
  const double weight = 1 / (p.sequence_mean ? p.total * length : p.total);
  const bool drops = off_policy && shared.away / length > p.off_policy_threshold;
  const bool own_ratio = p.level == RatioLevel::token || p.level == RatioLevel::sequence_sum;
  const F log_ratio = splat(
      p.level == RatioLevel::sequence_sum ? clamped(shared.log_ratio, kMinLogSum, kMaxLogRatio)
                                          : static_cast<float>(shared.log_ratio / length));
  F rollout = splat(1.0f);
  if (by_sequence)
    rollout = weight_of(p, splat(clamped(shared.drift, -kMaxLogRatio, kMaxLogRatio)));
  F options[8];
  for (int i = 0; i < 8; ++i) options[i] = splat(p.options[i]);
  const Surrogate surrogate = kSurrogates[p.surrogate];
  const Estimator estimator = kEstimators[p.estimator];
  const F w = splat(static_cast<float>(weight)), beta = splat(static_cast<float>(p.beta));
  const F entropy_grad = splat(static_cast<float>(-p.entropy_coef * p.entropy_weight));

  Sum policy, kl, entropy, clipped, ratios, drift, rollouts, dropped, active, chains;
  Largest ratio_max, drift_max;
  for (int64_t t = begin; t < end; t += kWidth) {
    const int64_t count = end - t;
    const Lanes l = lanes_at(p, b, t, count);
    const F x = p.level == RatioLevel::token ? l.own : log_ratio;
    F selected{};
    if (p.selected) selected = where(l.active > F{}, flags(p.selected, t, count), F{});
    const Four term = surrogate({l.logprob, l.old_logprob, x, l.advantage, selected}, options);
    const F ratio = exp(own_ratio ? l.own : log_ratio);
    if (p.rollout == Rollout::token_truncate || p.rollout == Rollout::token_mask)
      rollout = weight_of(p, l.drift);
    F policy_weight = p.level == RatioLevel::sequence_sum ? l.active : l.active * rollout;
    if (drops) {
      policy_weight = where(l.advantage < F{}, F{}, policy_weight);
      dropped += where(l.advantage < F{}, l.active, F{});
    }
    F chain = policy_weight * term.by_log_ratio, g = policy_weight * term.by_logprob;
    if (p.ref_logprob) {
      const F reference = where(l.active > F{}, read(p.ref_logprob, t, count), F{});
      const F difference = difference_of(reference, l.logprob), inside = bounded(difference);
      Two divergence = estimator(inside);
      divergence.slope = where(inside == difference, divergence.slope, F{});
      if (p.correct_kl) {
        divergence.value = divergence.value * ratio;
        divergence.slope = divergence.slope * ratio;
        chain = chain + beta * l.active * divergence.value;
      }
      g = g + beta * l.active * divergence.slope;
      kl += l.active * divergence.value;
    }
    if (p.level == RatioLevel::sequence)
      chains += chain;
    else
      g = g + chain * l.slope;
    write(p.grad, t, count, where(l.active > F{}, w * g, F{}));
    if (p.entropy) {
      entropy += where(l.active > F{}, read(p.entropy, t, count), F{});
      write(p.grad_entropy, t, count, where(l.active > F{}, entropy_grad, F{}));
    }
    policy += weighted(policy_weight, term.value);
    clipped += l.active * (l.cut + term.clipped);
    ratios += l.active * ratio;
    ratio_max += l.active * ratio;
    const F magnitude = maximum(l.drift, -l.drift);
    drift += magnitude;
    drift_max += magnitude;
    rollouts += l.active * rollout;
    active += l.active;
  }
  if (p.level == RatioLevel::sequence) {
    const F each = splat(static_cast<float>(weight * chains.total() / length));
    for (int64_t t = begin; t < end; t += kWidth) {
      const Lanes l = lanes_at(p, b, t, end - t);
      const F g = read(p.grad, t, end - t);
      write(p.grad, t, end - t, g + where(l.active > F{}, each * l.slope, F{}));
    }
  }
  const double used = active.total() > 0 ? weight : 0;  // a weight of nothing may be infinite
  *sums = {used * policy.total(), used * kl.total(), kl.total(), entropy.total(),
           clipped.total(), ratios.total(), ratio_max.total(), drift.total(), drift_max.total(),
           rollouts.total(), dropped.total(), active.total()};
}
}  // namespace r1::R1_ISA

#ifdef R1_BASELINE
namespace r1 {
namespace {
#define R1_STRING(name) #name,
constexpr const char* kSurrogateNames[] = {R1_SURROGATES(R1_STRING)};
constexpr const char* kEstimatorNames[] = {R1_ESTIMATORS(R1_STRING)};

template <size_t count>
int find(const char* const (&names)[count], const char* name) {
  for (size_t i = 0; i < count; ++i)
    if (!strcmp(names[i], name)) return static_cast<int>(i);
  return -1;
}
}  // namespace

int surrogate_named(const char* name) { return find(kSurrogateNames, name); }
int estimator_named(const char* name) { return find(kEstimatorNames, name); }
}  // namespace r1
#endif
