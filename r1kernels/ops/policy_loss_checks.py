"""What policy_loss asks of its arguments, beyond the table of losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from r1kernels import check
from r1kernels.ops.group_advantage import BASELINES, SCALES
from r1kernels.ops.losses import ROLLOUT_CORRECTIONS

NAME = "policy_loss"
FLOATS = (torch.float32, torch.float64)


def tensors(
    logprob: Tensor, cu_seqlens: Tensor, mask: Tensor | None, per_row: dict[str, Tensor | None]
) -> int:
    """The number of sequences."""
    shapes = check.Shapes(NAME)
    shapes("logprob", logprob, "T", FLOATS)
    shapes("cu_seqlens", cu_seqlens, "B+1", check.INTS)
    for what, tensor in per_row.items():
        if tensor is not None:
            shapes(what, tensor, "T", (logprob.dtype,))
    if mask is not None:
        shapes("mask", mask, "T", (torch.bool,))
    if cu_seqlens.shape[0] == 0:
        raise ValueError(f"{NAME}: cu_seqlens: expected at least one element, 0; got none")
    return cu_seqlens.shape[0] - 1


def advantages_or_rewards(
    logprob: Tensor,
    sequences: int,
    advantages: Tensor | None,
    rewards: Tensor | None,
    group_ids: Tensor | None,
    scale: str,
    baseline: str,
) -> Tensor:
    """The advantages, or the rewards of groups, checked."""
    check.choice(NAME, "scale_rewards", scale, SCALES)
    check.choice(NAME, "baseline", baseline, BASELINES)
    if (advantages is None) == (rewards is None and group_ids is None):
        got = "neither" if advantages is None else "both"
        raise ValueError(
            f"{NAME}: advantages: expected either advantages, or rewards and group_ids; got {got}"
        )
    shapes = check.Shapes(NAME)
    shapes.sizes |= {"B": sequences, "T": logprob.shape[0]}
    shapes.device = logprob.device
    if advantages is not None:
        per_token = advantages.dim() == 1 and advantages.shape[0] == logprob.shape[0]
        return shapes("advantages", advantages, "T" if per_token else "B", (logprob.dtype,))
    group_ids = needed("group_ids", group_ids, "rewards are given")
    rewards = needed("rewards", rewards, "group_ids are given")
    shapes("group_ids", group_ids, "B", check.INTS)
    return shapes("rewards", rewards, "B", (logprob.dtype,)).detach()


def needed(what: str, tensor: Tensor | None, why: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"{NAME}: {what}: expected a tensor, since {why}; got None")
    return tensor


def rollout_bounds(
    loss_type: str, correction: str | None, low: float | None, high: float | None
) -> tuple[float, float]:
    if correction is None:
        for what, value in (("rollout_clip_min", low), ("rollout_clip_max", high)):
            if value is not None:
                raise ValueError(
                    f"{NAME}: {what}: expected None without rollout_correction, got {value}"
                )
        return 0.0, math.inf
    check.choice(NAME, "rollout_correction", correction, ROLLOUT_CORRECTIONS)
    if loss_type == "vespo" and correction.startswith("sequence"):
        raise ValueError(
            f"{NAME}: rollout_correction: 'vespo' sums over the sequence itself, expected "
            f"token_truncate or token_mask; got {correction!r}"
        )
    low, high = 0.0 if low is None else low, 3.0 if high is None else high
    if not 0 <= low < high:
        raise ValueError(
            f"{NAME}: rollout_clip_min: expected 0 ≤ rollout_clip_min < rollout_clip_max, "
            f"got {low} and {high}"
        )
    return low, high
