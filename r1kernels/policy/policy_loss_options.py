"""The keywords that functions hand on to ``policy_loss``, with their types.

Each class is what ``**options`` of a function may be, as editors and type checkers see it; what
the options mean is said by ``policy_loss``. An unknown one is an error that names the nearest.
"""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor


class LossOptions(TypedDict, total=False):
    """Options of the loss types, ``**options`` of ``policy_loss``; None stands for the default."""

    epsilon: float | None
    """Bound of the ratio below 1 (grpo, bnpo, dr_grpo, dapo, gspo, luspo, cispo_clip, clip_cov:
    0.2), of the log ratio (gmpo: 0.4), of the move of the probability (dppo_tv: 0.2) or of its KL
    (dppo_kl: 0.05)."""
    epsilon_high: float | None
    """The same above 1 (default: epsilon); the cap itself, required, for cispo."""
    delta: float | None
    """Bound of the ratio for negative advantages too, of the ppo losses (default: none)."""
    clip_ratio_c: float | None
    """Dual clip, above 1 (default: none; dppo_tv and dppo_kl: 20)."""
    sapo_temperature_pos: float | None
    """τ of sapo for positive advantages (1)."""
    sapo_temperature_neg: float | None
    """τ of sapo for negative advantages (1.05)."""
    vespo_k_pos: float | None
    """k of vespo for positive advantages (2)."""
    vespo_lambda_pos: float | None
    """λ of vespo for positive advantages (3)."""
    vespo_k_neg: float | None
    """k of vespo for negative advantages (3)."""
    vespo_lambda_neg: float | None
    """λ of vespo for negative advantages (2)."""
    clip_cov_ratio: float | None
    """Share of the active tokens that clip_cov leaves out (0.0002)."""
    clip_cov_lb: float | None
    """Least covariance of a token that clip_cov leaves out (1)."""
    clip_cov_ub: float | None
    """Largest covariance of a token that clip_cov leaves out (5)."""
    seed: int | None
    """Of the draws of clip_cov (0): another one at every step."""
    kl_cov_ratio: float | None
    """Share of the active tokens that kl_cov penalises (0.0002)."""
    ppo_kl_coef: float | None
    """κ, the weight of that penalty (1)."""


class PolicyLossOptions(LossOptions, total=False):
    """Keywords of ``policy_loss`` that ``fused_linear_grpo_loss`` hands on."""

    importance_sampling_level: str | None
    """"token", "sequence" or "sequence_token"; None: that of the loss type."""
    kl_estimator: str
    """"k1", "abs", "k2", "k3" (default), "low_var" or "k3+"."""
    use_bias_correction_kl: bool
    """Multiply the KL of a token by its ratio."""
    old_logprob: Tensor | None
    """[T] under the policy that the ratio compares with; None: ratio 1."""
    ref_logprob: Tensor | None
    """[T] under the reference policy, required with ``beta``."""
    sampling_logprob: Tensor | None
    """[T] as the sampler reported them."""
    rollout_correction: str | None
    """"token_truncate", "token_mask", "sequence_truncate" or "sequence_mask"; None: none."""
    rollout_clip_min: float | None
    """Lower bound of the rollout's weight (0)."""
    rollout_clip_max: float | None
    """Upper bound of the rollout's weight (3)."""
    off_policy_mask_threshold: float | None
    """Mean difference of log-probabilities above which a sequence with A < 0 is masked."""
    num_active_tokens: float | Tensor | None
    """Of the whole optimizer step; None: of this call."""
    num_sequences: float | Tensor | None
    """Of the whole optimizer step; None: B."""
    max_completion_length: int | None
    """In tokens, required for dr_grpo."""


class FusedLossOptions(PolicyLossOptions, total=False):
    """Keywords of ``fused_linear_grpo_loss`` that ``hf.grpo_loss`` hands on.

    What is [T] there is [B, C] in ``hf.grpo_loss``, C tokens of each of B completions.
    """

    advantages: Tensor | None
    """[B], one a completion, or one a token; or else rewards and group_ids."""
    rewards: Tensor | None
    """[B], of complete groups."""
    group_ids: Tensor | None
    """[B]: completions of one prompt have the same."""
    scale_rewards: str
    """"group" (default), "batch" or "none"."""
    baseline: str
    """"mean" (default), "rloo" or "opo"."""
    temperature: float | Tensor
    """Divides the logits last; a number or one a token."""
    candidate_ids: Tensor | None
    """[N], see ``linear_logprob``."""
    candidate_offsets: Tensor | None
    """[T + 1], see ``linear_logprob``."""
    entropy: bool
    """Compute the entropies too."""
    loss_type: str
    """"grpo" by default."""
    beta: float
    """Weight of the KL term."""
    entropy_coef: float
    """Weight of the entropy bonus."""
