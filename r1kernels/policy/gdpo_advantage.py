"""Advantages from several rewards, each measured against its own spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.policy.group_advantage import group_advantage


def gdpo_advantage(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    reward_weights: Sequence[float] | Tensor | None = None,
    eps: float = 1e-4,
) -> Tensor:
    """Normalise each reward within its group, add up, whiten over the batch  (GDPO; as in TRL).

    Advantages of a sum would let the reward with the largest spread drown the others. With
    S = Σ_r weight_r·group_advantage(rewards[:, r]), A = (S − mean S) / (std S + eps); the batch is
    the last group, so the promises of ``group_advantage`` hold: exactly 0 where all are equal, and
    no dependence on the order of the batch.

    Args:
        rewards: [B, R], float32 or float64, finite.
        group_ids: [B], int64 or int32, see ``group_advantage``.
        reward_weights: R numbers, or a tensor [R] of them (default: all 1).
        eps: added to every standard deviation.

    Returns:
        [B], dtype of rewards; a constant for autograd.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    shapes = check.Shapes("gdpo_advantage")
    shapes("rewards", rewards, "B R", (torch.float32, torch.float64))
    shapes("group_ids", group_ids, "B", check.INTS)
    kinds = rewards.shape[1]
    check.number("gdpo_advantage", "eps", eps)
    weights = _weights(shapes, reward_weights, kinds)
    total = torch.zeros_like(rewards[:, 0]) if kinds else rewards.new_zeros(rewards.shape[0])
    for kind, weight in enumerate(weights):
        total = total + weight * group_advantage(rewards[:, kind], group_ids, eps=eps)
    return group_advantage(total, torch.zeros_like(group_ids), eps=eps)


def _weights(shapes: check.Shapes, given: Any, kinds: int) -> Sequence[float | Tensor]:
    """One a reward; those of a tensor stay on its device, where nobody waits for them."""
    op, name = shapes.op, "reward_weights"
    if given is None:
        return [1.0] * kinds
    if isinstance(given, Tensor):
        if given.dim() == 1 and check.may_look(given):
            check.finite(op, name, given)
        weights: Sequence[float | Tensor] = given.detach().unbind() if given.dim() == 1 else []
    elif isinstance(given, (list, tuple)):
        weights = [check.number(op, name, value) for value in given]
    else:
        raise TypeError(f"{op}: {name}: expected a list of numbers, got {check.described(given)}")
    if len(weights) != kinds:
        raise ValueError(f"{op}: {name}: expected R = {kinds} numbers, got {len(weights)}")
    return weights
