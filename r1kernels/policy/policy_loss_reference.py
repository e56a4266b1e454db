"""policy_loss in plain PyTorch: what every backend must equal, on every device and in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from r1kernels.policy import group_advantage, surrogates

# e²⁰ is far outside of every trust region, and neither it nor its square overflows.
MAX_LOG_RATIO = 20.0
# Sums of log ratios over a whole sequence (VESPO) stay above this; so does the logarithm of a
# rollout weight of zero.
MIN_LOG_SUM = math.log(1e-8)

METRICS = (
    "policy_loss", "kl", "entropy", "clip_fraction", "ratio_mean", "ratio_max",
    "sampling_delta_mean", "sampling_delta_max", "rollout_weight_mean", "off_policy_fraction",
    "active_tokens",
)  # fmt: skip


class Arguments(NamedTuple):
    """The arguments of the op ``policy_loss``, in its order. F: float32 (float64 in the reference).

    The public function checks them and says what they mean; here is only what it has resolved.
    """

    logprob: Tensor  # F [T]
    advantages: Tensor  # F [B] or [T] ([B] where T = B); rewards [B] when group_ids is given
    cu_seqlens: Tensor  # int32 or int64 [B + 1]
    group_ids: Tensor | None  # int32 or int64 [B]
    old_logprob: Tensor | None  # F [T]; None: logprob, as a constant
    ref_logprob: Tensor | None  # F [T]; None: no KL term
    sampling_logprob: Tensor | None  # F [T]; NaN: unknown, taken for old_logprob
    mask: Tensor | None  # bool [T]; None: every row is active
    selected: Tensor | None  # bool [T]; see surrogates.py; None: none
    entropy: Tensor | None  # F [T]
    denominator: Tensor | None  # F []; None: active rows, or B with sequence_mean
    num_active_tokens: Tensor | None  # F []; divides the entropy bonus; None: active rows
    surrogate: str  # a function of surrogates.py
    options: list[float]  # its options, in its order
    level: str  # "token", "sequence", "sequence_token"; "sequence_sum" for vespo only
    sequence_mean: bool  # divide by the active rows of the sequence too
    beta: float
    kl_estimator: str  # a function of surrogates.py
    use_bias_correction_kl: bool  # the KL of a token is multiplied by its ratio
    entropy_coef: float
    rollout_correction: str  # "none" or one of ROLLOUT_CORRECTIONS
    rollout_clip_min: float
    rollout_clip_max: float
    off_policy_mask_threshold: float  # inf: no mask
    scale: str  # of group_advantage; these three are used when group_ids is given
    baseline: str
    eps: float


def reference(*args: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss [], ∂loss/∂logprob [T], ∂loss/∂entropy [T] or [0], metrics [len(METRICS)])."""
    a = Arguments(*args)  # type: ignore[arg-type]
    zero = a.logprob.new_zeros(())
    active = torch.ones_like(a.logprob, dtype=torch.bool) if a.mask is None else a.mask
    m = active.to(a.logprob.dtype)
    tokens = m.sum()
    sequences = Sequences(a.cu_seqlens, a.logprob.shape[0])
    length = sequences.sum(m).clamp(min=1)
    options = [torch.full((), value, dtype=m.dtype, device=m.device) for value in a.options]

    # Weights: loss = Σ w·L.
    if a.sequence_mean:
        total = length * (sequences.count if a.denominator is None else a.denominator)
    else:
        total = tokens if a.denominator is None else a.denominator
    w = (1 / total).expand_as(m).where(active, 0)

    logprob = a.logprob.where(active, 0)
    old_logprob = logprob if a.old_logprob is None else a.old_logprob.where(active, 0)
    advantage = a.advantages
    if a.group_ids is not None:
        advantage = group_advantage.reference(
            advantage, a.group_ids, None, a.scale, a.baseline, a.eps
        )
    if advantage.shape[0] == sequences.count:
        advantage = advantage[sequences.of_row]
    advantage = advantage.where(active, 0)

    # The ratio of the token, and that of the surrogate.
    log_ratio, slope = bounded_difference(logprob, old_logprob)
    ratio = log_ratio.exp()
    clipped = zero
    x = log_ratio
    if a.surrogate == "gmpo":
        x, inside = surrogates.gmpo_log_ratio(log_ratio, advantage, *options)
        slope, clipped = slope * inside, (1 - inside).where(advantage != 0, 0)

    drift = zero
    rollout = torch.ones_like(m)
    if a.sampling_logprob is not None:
        drift = known(bounded_difference(old_logprob, a.sampling_logprob)[0], a, active)
    if a.rollout_correction != "none":
        rollout = rollout_weight(a, drift, sequences)
    if a.level == "sequence_sum":
        correction = rollout.log().clamp(min=MIN_LOG_SUM)
        x = (sequences.sum(x) + sequences.sum(correction)).clamp(MIN_LOG_SUM, MAX_LOG_RATIO)
    elif a.level != "token":
        x = sequences.sum(x) / length
        ratio = x.exp()
    x = x.where(active, 0)

    # The policy term and its gradient.
    policy_weight = w if a.level == "sequence_sum" else w * rollout
    dropped = torch.zeros_like(active)
    if a.off_policy_mask_threshold < math.inf:
        behaviour = old_logprob if a.sampling_logprob is None else a.sampling_logprob
        away = known(bounded_difference(behaviour, logprob)[0], a, active)
        away = sequences.sum(away) / length
        dropped = active & (advantage < 0) & (away > a.off_policy_mask_threshold)
        policy_weight = policy_weight.where(~dropped, 0)
    selected = torch.zeros_like(m) if a.selected is None else a.selected.where(active, False).to(m)
    function = getattr(surrogates, a.surrogate)
    value, by_log_ratio, by_logprob, cut = function(
        logprob, old_logprob, x, advantage, selected, *options
    )
    loss = policy = weighted(policy_weight, value).sum()
    chain, grad = policy_weight * by_log_ratio, policy_weight * by_logprob

    kl = torch.zeros_like(m)
    if a.ref_logprob is not None:
        difference, inside = bounded_difference(a.ref_logprob.where(active, 0), logprob)
        kl, kl_slope = getattr(surrogates, a.kl_estimator)(difference)
        kl_slope = kl_slope * inside
        if a.use_bias_correction_kl:
            kl, kl_slope = kl * ratio, kl_slope * ratio
            chain = chain + a.beta * w * kl
        loss = loss + a.beta * (w * kl).sum()
        grad = grad + a.beta * w * kl_slope
    if a.level == "sequence":
        chain = sequences.sum(chain) / length * m
    grad = (grad + chain * slope).where(active, 0)  # of others a whole sequence may be NaN

    entropy, grad_entropy = zero, m.new_empty(0)
    if a.entropy is not None:
        entropy_weight = (1 / (tokens if a.num_active_tokens is None else a.num_active_tokens)) * m
        entropy_weight = entropy_weight.where(active, 0)
        entropy = a.entropy.where(active, 0)
        loss = loss - a.entropy_coef * (entropy_weight * entropy).sum()
        grad_entropy = -a.entropy_coef * entropy_weight

    def mean(values: Tensor) -> Tensor:
        return (values * m).sum() / tokens.clamp(min=1)

    drift = drift.abs()
    metrics = torch.stack(
        [
            policy, mean(kl), mean(entropy), mean(clipped + cut), mean(ratio), _max(ratio * m),
            mean(drift), _max(drift * m), mean(rollout), mean(dropped.to(m)), tokens,
        ]
    )  # fmt: skip
    return loss, grad, grad_entropy, metrics


def rollout_weight(a: Arguments, drift: Tensor, sequences: Sequences) -> Tensor:
    """w = π_old/π_sampler of the token or of its sequence, cut to the bounds or outside of them."""
    of, _, how = a.rollout_correction.partition("_")
    if of == "sequence":
        drift = sequences.sum(drift).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    weight = drift.exp()
    if how == "truncate":
        return weight.clamp(a.rollout_clip_min, a.rollout_clip_max)
    outside = (weight < a.rollout_clip_min) | (weight > a.rollout_clip_max)
    return weight.where(~outside, 0)


def bounded_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a − b, bounded, and its derivative: 1, or 0 where it was bounded. −∞ − (−∞) is 0."""
    difference = (a - b).where(a != b, 0)
    bounded = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return bounded, (bounded == difference).to(a.dtype)


def known(difference: Tensor, a: Arguments, active: Tensor) -> Tensor:
    """0 at inactive rows and where the sampler did not say; a NaN of anyone else stays."""
    if a.sampling_logprob is not None:
        active = active & ~a.sampling_logprob.isnan()
    return difference.where(active, 0)


def weighted(weight: Tensor, value: Tensor) -> Tensor:
    """weight·value, where a row without weight counts for nothing, however infinite it is."""
    return (weight * value).where((weight != 0) | ~value.isinf(), 0)


class Sequences:
    """Sums over packed sequences, in a fixed order."""

    def __init__(self, cu_seqlens: Tensor, rows: int) -> None:
        self.offsets = cu_seqlens
        self.count = cu_seqlens.numel() - 1
        steps = torch.arange(rows, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
        self.of_row = torch.searchsorted(cu_seqlens[1:].contiguous(), steps, right=True)

    def total(self, values: Tensor) -> Tensor:
        """[T] → the sum of each sequence, [B]."""
        return torch.segment_reduce(values, "sum", offsets=self.offsets, initial=0)

    def sum(self, values: Tensor) -> Tensor:
        """[T] → the sum of each sequence, given to each of its rows, [T]."""
        return self.total(values)[self.of_row]


def _max(values: Tensor) -> Tensor:
    return values.max() if values.numel() else values.new_zeros(())
