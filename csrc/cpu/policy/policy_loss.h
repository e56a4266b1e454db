// What the kernel of policy_loss is given and gives, the same for every instruction set. The terms
// are those of r1kernels/policy/policy_loss_reference.py.
#pragma once

#include <cstdint>

namespace r1 {
enum class RatioLevel { token, sequence, sequence_token, sequence_sum };
enum class Rollout { none, token_truncate, token_mask, sequence_truncate, sequence_mask };

struct PolicyLoss {
  const float *logprob, *old_logprob;  // [rows]; the same without an old policy
  const float* advantages;             // [sequences] or [rows]
  const float *ref_logprob, *sampling_logprob, *entropy;  // [rows] or null
  const bool *mask, *selected;                            // [rows] or null
  const int64_t* cu_seqlens;
  bool advantage_per_sequence, sequence_mean, correct_kl;
  int surrogate, estimator;
  bool gmpo;
  RatioLevel level;
  Rollout rollout;
  float options[8];
  float rollout_min, rollout_max, off_policy_threshold;
  // total: the denominator but for a sequence's length
  double beta, entropy_coef, total, entropy_weight;
  float *grad, *grad_entropy;
};

// Over the active rows of a sequence, or of all; policy and kl as they enter the loss.
struct PolicyLossSums {
  double policy, penalty, kl, entropy, clipped, ratio, ratio_max, drift, drift_max, rollout;
  double dropped, active;
};

// Functions of surrogates.py by name, as PolicyLoss wants them; -1 for none.
int surrogate_named(const char* name);
int estimator_named(const char* name);
}  // namespace r1
