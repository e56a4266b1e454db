"""Advantages of completions relative to the other completions of the same prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.core.quotient import quotient
from r1kernels.core.remembered import remembered

SCALES = ("group", "batch", "none")
BASELINES = ("mean", "rloo", "opo")


def group_advantage(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    scale: str = "group",
    baseline: str = "mean",
    eps: float = 1e-4,
    lengths: Tensor | None = None,
) -> Tensor:
    """A = (R − baseline of the group) / (standard deviation + eps)  (DeepSeekMath; as in TRL).

    A group all of whose rewards are equal gets exactly 0, however they round; so does a group of
    one, which has nothing to be compared with. The result does not depend on the order of the
    batch: the sums run over sorted rewards, in float64.

    Args:
        rewards: [B], float32 or float64, finite.
        group_ids: [B], int64 or int32: any integers, in any order; equal ones form a group.
        scale: divide by the unbiased standard deviation of the "group" or of the whole "batch",
            or "none" (Dr. GRPO).
        baseline: the group's "mean"; or the mean of its other members, "rloo" (RLOO), which is
            G/(G − 1) times as far away; or Σ length·R / Σ length, "opo" (OPO).
        eps: added to the standard deviation.
        lengths: [B], of the completions in tokens, int64, int32 or float, finite; for "opo",
            required there. Unequal rewards of a group without any token give NaN: 0/0.

    Returns:
        [B], dtype of rewards; a constant for autograd.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    _check(rewards, group_ids, scale, baseline, eps, lengths)
    if lengths is not None:
        lengths = lengths.to(rewards.dtype)
    return GROUP_ADVANTAGE(rewards.detach(), group_ids, lengths, scale, baseline, eps)


@remembered
def _check(
    rewards: Tensor,
    group_ids: Tensor,
    scale: str,
    baseline: str,
    eps: float,
    lengths: Tensor | None,
) -> None:
    shapes = check.Shapes("group_advantage")
    shapes("rewards", rewards, "B", (torch.float32, torch.float64))
    shapes("group_ids", group_ids, "B", check.INTS)
    check.number("group_advantage", "eps", eps)
    check.choice("group_advantage", "scale", scale, SCALES)
    check.choice("group_advantage", "baseline", baseline, BASELINES)
    if (lengths is not None) != (baseline == "opo"):
        expected = "a tensor of shape [B]" if lengths is None else "None"
        raise ValueError(
            f"group_advantage: lengths: expected {expected} for baseline {baseline!r}, got "
            f"{'None' if lengths is None else 'a tensor'}"
        )
    if lengths is not None:
        shapes("lengths", lengths, "B", (*check.INTS, torch.float32, torch.float64))


def reference(
    rewards: Tensor,
    group_ids: Tensor,
    lengths: Tensor | None,
    scale: str,
    baseline: str,
    eps: float,
) -> Tensor:
    if rewards.numel() == 0:
        return torch.empty_like(rewards)
    by_value = rewards.argsort(stable=True)
    if lengths is not None:  # equal rewards in a fixed order too
        by_length = lengths.argsort(stable=True)
        by_value = by_length[rewards[by_length].argsort(stable=True)]
    order = by_value[group_ids[by_value].argsort(stable=True)]
    r, ids = rewards[order].double(), group_ids[order]

    # Groups are runs now, numbered from 0; there are at most B of them, and no one asks how many.
    group = torch.cat([ids.new_zeros(1), (ids[1:] != ids[:-1]).to(ids.dtype)]).cumsum(0)
    size = torch.zeros_like(group).scatter_add_(0, group, torch.ones_like(group))

    def group_sum(values: Tensor) -> Tensor:
        return torch.segment_reduce(values, "sum", lengths=size, initial=0)[group]

    n = size[group]
    last = size.cumsum(0)[group] - 1
    constant = r[last - n + 1] == r[last]
    centred = advantage = r - group_sum(r) / n
    if baseline == "rloo":
        advantage = centred * n / (n - 1)
    elif lengths is not None:
        weight = lengths[order].double()
        advantage = r - group_sum(weight * r) / group_sum(weight)
    if scale == "group":
        advantage = advantage / ((group_sum(centred.square()) / (n - 1)).sqrt() + eps)
    elif scale == "batch":
        deviation = rewards[by_value].double() - r.mean()
        variance = quotient(deviation.square().sum(), max(rewards.numel() - 1, 1))
        advantage = advantage / (variance.sqrt() + eps)
    advantage = advantage.where(~constant, 0).to(rewards.dtype)
    return torch.empty_like(advantage).scatter_(0, order, advantage)


def _fake(rewards: Tensor, *_: Any) -> Tensor:
    return rewards.new_empty(rewards.shape)


def _validate(rewards: Tensor, group_ids: Tensor, lengths: Tensor | None, *_: Any) -> None:
    check.finite("group_advantage", "rewards", rewards)
    if lengths is not None:
        check.finite("group_advantage", "lengths", lengths)


def _case(
    name: str,
    groups: int,
    size: int,
    scale: str = "group",
    baseline: str = "mean",
    *,
    binary: bool = False,
    bench: bool = False,
) -> Case:
    count = groups * size

    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(count)
        rewards = torch.rand(count, generator=rng)
        if binary:
            rewards = rewards.round()
        ids = 7 - 3 * torch.arange(groups).repeat(size)[torch.randperm(count, generator=rng)]
        lengths = torch.randint(1, 9, (count,), generator=rng).float().to(device)
        given = lengths if baseline == "opo" else None
        return rewards.to(device), ids.to(device), given, scale, baseline, 1e-4

    return Case(name, make, flops=8.0 * count, bytes=16.0 * count, bench=bench)


CASES = (
    *(_case(f"{s} {b}", 6, 5, s, b) for s in SCALES for b in BASELINES),
    _case("binary rewards", 40, 4, binary=True),
    _case("groups of one", 9, 1, baseline="rloo"),
    _case("one completion", 1, 1, "batch"),
    _case("no completions", 0, 4),
    _case("one group", 1, 64),
    _case("large", 4096, 16, bench=True),
)

GROUP_ADVANTAGE = Op(
    "group_advantage(Tensor rewards, Tensor group_ids, Tensor? lengths, str scale, "
    "str baseline, float eps) -> Tensor",
    reference=reference,
    fake=_fake,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.policy.triton.group_advantage",
)
