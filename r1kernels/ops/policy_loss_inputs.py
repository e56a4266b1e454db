"""What policy_loss and its fused form ask of their arguments, beyond the table of losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from r1kernels import check
from r1kernels.ops.group_advantage import BASELINES, SCALES, group_advantage
from r1kernels.ops.losses import ROLLOUT_CORRECTIONS
from r1kernels.ops.policy_loss_reference import Sequences

FLOATS = (torch.float32, torch.float64)


def sequences(shapes: check.Shapes, cu_seqlens: Tensor) -> int:
    """B, checked and bound in ``shapes``."""
    shapes("cu_seqlens", cu_seqlens, "B+1", check.INTS)
    if cu_seqlens.shape[0] == 0:
        raise ValueError(f"{shapes.op}: cu_seqlens: expected at least one element, 0; got none")
    return shapes.sizes.setdefault("B", cu_seqlens.shape[0] - 1)


def advantages_or_rewards(
    shapes: check.Shapes,
    advantages: Tensor | None,
    rewards: Tensor | None,
    group_ids: Tensor | None,
    scale: str,
    baseline: str,
    dtypes: Sequence[torch.dtype] = FLOATS,
) -> Tensor:
    """The advantages, or the rewards of groups; ``shapes`` knows B and T."""
    check.choice(shapes.op, "scale_rewards", scale, SCALES)
    check.choice(shapes.op, "baseline", baseline, BASELINES)
    if (advantages is None) == (rewards is None and group_ids is None):
        got = "neither" if advantages is None else "both"
        raise ValueError(
            f"{shapes.op}: advantages: expected either advantages, or rewards and group_ids; "
            f"got {got}"
        )
    if advantages is not None:
        if scale != SCALES[0] or baseline != BASELINES[0]:
            raise ValueError(
                f"{shapes.op}: scale_rewards, baseline: expected only with rewards, since "
                f"advantages are given; got {scale!r}, {baseline!r}"
            )
        per_token = advantages.dim() == 1 and advantages.shape[0] == shapes.sizes["T"]
        return shapes("advantages", advantages, "T" if per_token else "B", dtypes)
    group_ids = needed(shapes.op, "group_ids", group_ids, "rewards are given")
    rewards = needed(shapes.op, "rewards", rewards, "group_ids are given")
    shapes("group_ids", group_ids, "B", check.INTS)
    return shapes("rewards", rewards, "B", dtypes).detach()


def advantages_of_groups(
    rewards: Tensor,
    group_ids: Tensor,
    scale: str,
    baseline: str,
    cu_seqlens: Tensor,
    rows: int,
    mask: Tensor | None,
) -> Tensor:
    """[B]; the lengths that "opo" asks for are the active tokens."""
    lengths = None
    if baseline == "opo":
        active = rewards.new_ones(rows) if mask is None else mask.to(rewards.dtype)
        lengths = Sequences(cu_seqlens, rows).total(active)
    return group_advantage(rewards, group_ids, scale=scale, baseline=baseline, lengths=lengths)


def needed(op: str, what: str, tensor: Tensor | None, why: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"{op}: {what}: expected a tensor, since {why}; got None")
    return tensor


def rollout_bounds(
    op: str, loss_type: str, correction: str | None, low: float | None, high: float | None
) -> tuple[float, float]:
    if correction is None:
        for what, value in (("rollout_clip_min", low), ("rollout_clip_max", high)):
            if value is not None:
                raise ValueError(
                    f"{op}: {what}: expected None without rollout_correction, got {value}"
                )
        return 0.0, math.inf
    check.choice(op, "rollout_correction", correction, ROLLOUT_CORRECTIONS)
    if loss_type == "vespo" and correction.startswith("sequence"):
        raise ValueError(
            f"{op}: rollout_correction: 'vespo' sums over the sequence itself, expected "
            f"token_truncate or token_mask; got {correction!r}"
        )
    low, high = 0.0 if low is None else low, 3.0 if high is None else high
    if not 0 <= low < high:
        raise ValueError(
            f"{op}: rollout_clip_min: expected 0 ≤ rollout_clip_min < rollout_clip_max, "
            f"got {low} and {high}"
        )
    return low, high
