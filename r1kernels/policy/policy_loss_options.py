"""The options of a policy loss: names, defaults and checks, in one place.

``policy_loss`` says what they mean. Functions that hand them on take a ``PolicyLossOptions``, or
its fields as keywords, whose types editors and type checkers find in the classes at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from torch import Tensor

from r1kernels.core import check
from r1kernels.policy import losses
from r1kernels.policy.losses import KL_ESTIMATORS, LOSSES, ROLLOUT_CORRECTIONS

NAME = "PolicyLossOptions"


@dataclass(frozen=True, kw_only=True)
class PolicyLossOptions:
    """Everything that ``policy_loss`` is told beside tensors and counts; None is the default.

    Raises:
        ValueError, TypeError: naming the option, what was expected and what came. So does every
            option, level or correction that means nothing for the loss type.
    """

    loss_type: str = "grpo"
    """A row of the table of ``policy_loss``."""
    importance_sampling_level: str | None = None
    """"token", "sequence" or "sequence_token"; None: that of the loss type."""
    beta: float = 0.0
    """Weight of the KL term."""
    kl_estimator: str = "k3"
    """"k1", "abs", "k2", "k3", "low_var" or "k3+"."""
    use_bias_correction_kl: bool = False
    """Multiply the KL of a token by its ratio."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    rollout_correction: str | None = None
    """"token_truncate", "token_mask", "sequence_truncate" or "sequence_mask"; None: none."""
    rollout_clip_min: float | None = None
    """Lower bound of the rollout's weight (0)."""
    rollout_clip_max: float | None = None
    """Upper bound of the rollout's weight (3)."""
    off_policy_mask_threshold: float | None = None
    """Mean difference of log-probabilities above which a sequence with A < 0 is masked."""
    max_completion_length: int | None = None
    """In tokens, required for dr_grpo."""
    epsilon: float | None = None
    """Bound of the ratio below 1 (grpo, bnpo, dr_grpo, dapo, gspo, luspo, cispo_clip, clip_cov:
    0.2), of the log ratio (gmpo: 0.4), of the move of the probability (dppo_tv: 0.2) or of its
    KL (dppo_kl: 0.05)."""
    epsilon_high: float | None = None
    """The same above 1 (default: epsilon); the cap itself, required, for cispo."""
    delta: float | None = None
    """Bound of the ratio for negative advantages too, of the ppo losses (default: none)."""
    clip_ratio_c: float | None = None
    """Dual clip, above 1 (default: none; dppo_tv and dppo_kl: 20)."""
    sapo_temperature_pos: float | None = None
    """τ of sapo for positive advantages (1)."""
    sapo_temperature_neg: float | None = None
    """τ of sapo for negative advantages (1.05)."""
    vespo_k_pos: float | None = None
    """k of vespo for positive advantages (2)."""
    vespo_lambda_pos: float | None = None
    """λ of vespo for positive advantages (3)."""
    vespo_k_neg: float | None = None
    """k of vespo for negative advantages (3)."""
    vespo_lambda_neg: float | None = None
    """λ of vespo for negative advantages (2)."""
    clip_cov_ratio: float | None = None
    """Share of the active tokens that clip_cov leaves out (0.0002)."""
    clip_cov_lb: float | None = None
    """Least covariance of a token that clip_cov leaves out (1)."""
    clip_cov_ub: float | None = None
    """Largest covariance of a token that clip_cov leaves out (5)."""
    seed: int | None = None
    """Of the draws of clip_cov (0): another one at every step."""
    kl_cov_ratio: float | None = None
    """Share of the active tokens that kl_cov penalises (0.0002)."""
    ppo_kl_coef: float | None = None
    """κ, the weight of that penalty (1)."""

    level: str = field(init=False, repr=False, compare=False)
    """Whose ratio it is, by the options; so is all that follows."""
    of_loss: dict[str, Any] = field(init=False, repr=False, compare=False)
    """The value of every option that the loss type has."""
    of_surrogate: list[float] = field(init=False, repr=False, compare=False)
    """Those of its function, in its order."""
    rollout_bounds: tuple[float, float] = field(init=False, repr=False, compare=False)
    """Of the rollout's weight."""

    def __post_init__(self) -> None:
        check.choice(NAME, "loss_type", self.loss_type, tuple(LOSSES))
        check.choice(NAME, "kl_estimator", self.kl_estimator, tuple(KL_ESTIMATORS))
        check.number(NAME, "beta", self.beta)
        check.number(NAME, "entropy_coef", self.entropy_coef)
        check.flag(NAME, "use_bias_correction_kl", self.use_bias_correction_kl)
        threshold = self.off_policy_mask_threshold
        if threshold is not None:
            check.number(NAME, "off_policy_mask_threshold", threshold, infinite=True)
        if self.max_completion_length is not None:
            check.count(NAME, "max_completion_length", self.max_completion_length)
        loss = LOSSES[self.loss_type]
        if loss.average == "max_length" and self.max_completion_length is None:
            raise ValueError(
                f"{NAME}: max_completion_length: expected a number for {self.loss_type!r}, got None"
            )
        if self.use_bias_correction_kl and self.loss_type == "gmpo":
            raise ValueError(
                f"{NAME}: use_bias_correction_kl: expected False for 'gmpo': its ratio is clipped; "
                "got True"
            )
        level = losses.choose_level(NAME, self.loss_type, self.importance_sampling_level)
        given = {name: getattr(self, name) for name in losses.OPTIONS}
        of_loss = losses.resolve(NAME, self.loss_type, given)
        object.__setattr__(self, "level", level)
        object.__setattr__(self, "of_loss", of_loss)
        object.__setattr__(self, "of_surrogate", losses.parameters(loss.surrogate, of_loss))
        object.__setattr__(self, "rollout_bounds", self._rollout_bounds())

    def _rollout_bounds(self) -> tuple[float, float]:
        correction, low, high = (
            self.rollout_correction,
            self.rollout_clip_min,
            self.rollout_clip_max,
        )
        if correction is None:
            for name, value in (("rollout_clip_min", low), ("rollout_clip_max", high)):
                if value is not None:
                    raise ValueError(
                        f"{NAME}: {name}: expected None without rollout_correction, got {value}"
                    )
            return 0.0, math.inf
        check.choice(NAME, "rollout_correction", correction, ROLLOUT_CORRECTIONS)
        if self.loss_type == "vespo" and correction.startswith("sequence"):
            raise ValueError(
                f"{NAME}: rollout_correction: 'vespo' sums over the sequence itself, expected "
                f"token_truncate or token_mask; got {correction!r}"
            )
        low = 0.0 if low is None else check.number(NAME, "rollout_clip_min", low, infinite=True)
        high = 3.0 if high is None else check.number(NAME, "rollout_clip_max", high, infinite=True)
        if not 0 <= low < high:
            raise ValueError(
                f"{NAME}: rollout_clip_min: expected 0 ≤ rollout_clip_min < rollout_clip_max, "
                f"got {low} and {high}"
            )
        return low, high


def options_of_call(
    op: str,
    options: PolicyLossOptions | None,
    made_of: Callable[..., PolicyLossOptions],
    keywords: Mapping[str, Any],
) -> PolicyLossOptions:
    """What a function was given: either options or keywords."""
    if options is None:
        return made_of(**keywords)
    if keywords or not isinstance(options, PolicyLossOptions):
        got = f"{', '.join(keywords)} too" if keywords else check.described(options)
        raise TypeError(f"{op}: options: expected PolicyLossOptions and no keywords, got {got}")
    return options


class LossOptions(TypedDict, total=False):
    """The fields of ``PolicyLossOptions`` as keywords."""

    loss_type: str
    importance_sampling_level: str | None
    beta: float
    kl_estimator: str
    use_bias_correction_kl: bool
    entropy_coef: float
    rollout_correction: str | None
    rollout_clip_min: float | None
    rollout_clip_max: float | None
    off_policy_mask_threshold: float | None
    max_completion_length: int | None
    epsilon: float | None
    epsilon_high: float | None
    delta: float | None
    clip_ratio_c: float | None
    sapo_temperature_pos: float | None
    sapo_temperature_neg: float | None
    vespo_k_pos: float | None
    vespo_lambda_pos: float | None
    vespo_k_neg: float | None
    vespo_lambda_neg: float | None
    clip_cov_ratio: float | None
    clip_cov_lb: float | None
    clip_cov_ub: float | None
    seed: int | None
    kl_cov_ratio: float | None
    ppo_kl_coef: float | None


class FusedLossOptions(LossOptions, total=False):
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
    old_logprob: Tensor | None
    """[T] under the policy that the ratio compares with; None: ratio 1."""
    ref_logprob: Tensor | None
    """[T] under the reference policy, required with ``beta``."""
    sampling_logprob: Tensor | None
    """[T] as the sampler reported them."""
    num_active_tokens: float | Tensor | None
    """Of the whole optimizer step; None: of this call."""
    num_sequences: float | Tensor | None
    """Of the whole optimizer step; None: B."""
    options: PolicyLossOptions | None
    """Instead of its fields as keywords."""
