"""Every policy-gradient loss, once: its value, its derivative, and how its tokens are averaged.

A loss type is a *surrogate* (the value L of one token and its derivatives), a *level* (whose
importance ratio: the token's, or the sequence's) and an *average* (the denominator). All is plain
analytic code on [T] vectors: nothing here is differentiated by autograd.

Notation: ℓ new, o old, f reference log-probability; log ratio x = ℓ − o, or its mean over the
sequence; r = eˣ; A advantage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# e²⁰ is far outside of every trust region, and neither it nor its square overflows.
MAX_LOG_RATIO = 20.0

LEVELS = ("token", "sequence")
METRICS = (
    "policy_loss", "kl", "entropy", "clip_fraction", "ratio_mean", "ratio_max",
    "sampling_delta_mean", "sampling_delta_max", "active_tokens",
)  # fmt: skip


class Rows(NamedTuple):
    """What a surrogate sees of each row, [T]; all zero where the mask is."""

    logprob: Tensor
    log_ratio: Tensor
    advantage: Tensor


class Clip(NamedTuple):
    """Bounds of the ratio: [1 − epsilon, 1 + epsilon_high], and delta on both signs of A."""

    epsilon: float
    epsilon_high: float
    delta: float | None


class Term(NamedTuple):
    """Policy term of each row, [T]."""

    value: Tensor  # L
    by_log_ratio: Tensor  # ∂L/∂x
    by_logprob: Tensor  # ∂L/∂ℓ with x held fixed
    clipped: Tensor  # bool: a bound of the ratio cuts or caps this row's gradient


class Loss(NamedTuple):
    surrogate: str
    average: Literal["sequences", "local_tokens", "max_length", "tokens"]
    level: str | None = None  # None: the caller's importance_sampling_level


def ppo(rows: Rows, clip: Clip) -> Term:
    """L = −min(min(r, δ)·A, clip(r, 1 − ε, 1 + ε_high)·A)  (PPO, with INTELLECT-2's bound δ)."""
    ratio = rows.log_ratio.exp()
    low, high = 1 - clip.epsilon, 1 + clip.epsilon_high
    bounded, slope = ratio, torch.ones_like(ratio, dtype=torch.bool)
    if clip.delta is not None:
        bounded, slope = ratio.clamp(max=clip.delta), ratio <= clip.delta
    free, clipped = bounded * rows.advantage, ratio.clamp(low, high) * rows.advantage
    slope = slope.where(free <= clipped, (ratio >= low) & (ratio <= high))
    return Term(
        -torch.minimum(free, clipped),
        (-rows.advantage * ratio).where(slope, 0),
        torch.zeros_like(ratio),
        ~slope & (rows.advantage != 0),
    )


def cispo(rows: Rows, clip: Clip) -> Term:
    """L = −sg(min(r, ε_high))·A·ℓ  (MiniMax-M1, in TRL's form: the cap is ε_high itself)."""
    ratio = rows.log_ratio.exp()
    by_logprob = -ratio.clamp(max=clip.epsilon_high) * rows.advantage
    return Term(
        by_logprob * rows.logprob,
        torch.zeros_like(ratio),
        by_logprob,
        (ratio > clip.epsilon_high) & (rows.advantage != 0),
    )


def reinforce(rows: Rows, clip: Clip) -> Term:
    """L = −A·ℓ: the plain policy gradient, no ratio."""
    zero = torch.zeros_like(rows.advantage)
    return Term(-rows.advantage * rows.logprob, zero, -rows.advantage, zero.bool())


SURROGATES: dict[str, Callable[[Rows, Clip], Term]] = {
    "ppo": ppo,
    "cispo": cispo,
    "reinforce": reinforce,
}

# "reinforce" averages over the tokens of the step, so that every token weighs the same, as in the
# gradient of the expected reward; a mean within each sequence would favour short ones.
LOSSES = {
    "grpo": Loss("ppo", "sequences"),
    "bnpo": Loss("ppo", "local_tokens"),
    "dr_grpo": Loss("ppo", "max_length"),
    "dapo": Loss("ppo", "tokens"),
    "gspo": Loss("ppo", "sequences", level="sequence"),
    "cispo": Loss("cispo", "tokens"),
    "reinforce": Loss("reinforce", "tokens"),
}


def k1(x: Tensor) -> tuple[Tensor, Tensor]:
    return -x, torch.ones_like(x)


def k2(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.square() / 2, -x


def k3(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.expm1() - x, -x.expm1()


# KL(policy ‖ reference) of one token from x = f − ℓ: (value, ∂value/∂ℓ)  (Schulman, 2020).
KL_ESTIMATORS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {"k1": k1, "k2": k2, "k3": k3}


class Sequences:
    """Sums over packed sequences, in a fixed order."""

    def __init__(self, cu_seqlens: Tensor, rows: int) -> None:
        self.offsets = cu_seqlens
        self.count = cu_seqlens.numel() - 1
        steps = torch.arange(rows, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
        self.of_row = torch.searchsorted(cu_seqlens[1:].contiguous(), steps, right=True)

    def sum(self, values: Tensor) -> Tensor:
        """[T] → the sum of each sequence, given to each of its rows, [T]."""
        return torch.segment_reduce(values, "sum", offsets=self.offsets, initial=0)[self.of_row]


def log_difference(a: Tensor, b: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """a − b, zero at inactive rows and bounded, and where its derivative is 1 rather than 0."""
    difference = (a - b).where(active, 0)
    bounded = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return bounded, bounded == difference


def reference(
    logprob: Tensor,
    advantages: Tensor,
    cu_seqlens: Tensor,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    sampling_logprob: Tensor | None,
    mask: Tensor | None,
    entropy: Tensor | None,
    denominator: Tensor | None,
    num_active_tokens: Tensor | None,
    surrogate: str,
    level: str,
    sequence_mean: bool,
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
    beta: float,
    kl_estimator: str,
    entropy_coef: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    active = torch.ones_like(logprob, dtype=torch.bool) if mask is None else mask
    m = active.to(logprob.dtype)
    tokens = m.sum()
    sequences = Sequences(cu_seqlens, logprob.shape[0])
    length = sequences.sum(m).clamp(min=1)

    # Weights: loss = Σ w·L.
    if sequence_mean:
        total = length * (sequences.count if denominator is None else denominator)
    else:
        total = tokens if denominator is None else denominator
    w = (1 / total).expand_as(m).where(active, 0)

    # The policy term and its gradient.
    log_ratio, inside = log_difference(
        logprob, logprob if old_logprob is None else old_logprob, active
    )
    if level == "sequence":
        log_ratio = sequences.sum(log_ratio) / length
        log_ratio = log_ratio.where(active, 0)
    if advantages.shape[0] == sequences.count:
        advantages = advantages[sequences.of_row]
    rows = Rows(logprob.where(active, 0), log_ratio, advantages.where(active, 0))
    term = SURROGATES[surrogate](rows, Clip(epsilon, epsilon_high, delta))
    chain = w * term.by_log_ratio
    if level == "sequence":
        chain = sequences.sum(chain) / length * m
    grad = chain.where(inside, 0) + w * term.by_logprob
    policy = (w * term.value).sum()
    loss = policy

    none = policy.new_zeros(())
    mean = m / tokens.clamp(min=1)
    kl = delta_mean = delta_max = mean_entropy = none
    if ref_logprob is not None:
        x, inside = log_difference(ref_logprob, logprob, active)
        value, slope = KL_ESTIMATORS[kl_estimator](x)
        loss = loss + beta * (w * value).sum()
        grad = grad + beta * (w * slope).where(inside, 0)
        kl = (mean * value).sum()
    if sampling_logprob is not None:
        policy_logprob = logprob if old_logprob is None else old_logprob
        drift = (policy_logprob - sampling_logprob).abs().where(active, 0)
        delta_mean, delta_max = (mean * drift).sum(), _max(drift)
    grad_entropy = logprob.new_empty(0)
    if entropy is not None:
        total = tokens if num_active_tokens is None else num_active_tokens
        share = (1 / total).expand_as(m).where(active, 0)
        known = entropy.where(active, 0)
        loss = loss - entropy_coef * (share * known).sum()
        grad_entropy = -entropy_coef * share
        mean_entropy = (mean * known).sum()
    ratio = log_ratio.exp().where(active, 0)
    metrics = torch.stack(
        [
            policy, kl, mean_entropy, (mean * term.clipped).sum(), (mean * ratio).sum(),
            _max(ratio), delta_mean, delta_max, tokens,
        ]
    )  # fmt: skip
    return loss, grad, grad_entropy, metrics


def _max(values: Tensor) -> Tensor:
    return values.max() if values.numel() else values.new_zeros(())
