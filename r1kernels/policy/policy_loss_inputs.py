"""What policy_loss and its fused form ask of their arguments, beyond the table of losses."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.policy.group_advantage import BASELINES, SCALES, group_advantage
from r1kernels.policy.policy_loss_reference import Sequences

FLOATS = (torch.float32, torch.float64)


def sequences(shapes: check.Shapes, cu_seqlens: Tensor) -> int:
    """B, checked and bound in ``shapes``, which knows T."""
    shapes("cu_seqlens", cu_seqlens, "B+1", check.INTS)
    if cu_seqlens.shape[0] == 0:
        raise ValueError(f"{shapes.op}: cu_seqlens: expected at least one element, 0; got none")
    # Before B is taken from what may be lengths.
    look_at_sequences(shapes.op, cu_seqlens, shapes.sizes["T"], shapes.bound_by["T"])
    shapes.bound_by["B"] = "cu_seqlens"
    return shapes.sizes.setdefault("B", cu_seqlens.shape[0] - 1)


def look_at_sequences(op: str, cu_seqlens: Tensor, rows: int, of: str) -> None:
    """A check of values: apart from those of shapes, which are made once for arguments alike."""
    if check.may_look(cu_seqlens):
        check.cumulative(op, "cu_seqlens", cu_seqlens, rows, of)


def check_advantage_inputs(
    shapes: check.Shapes,
    advantages: Tensor | None,
    rewards: Tensor | None,
    group_ids: Tensor | None,
    scale: str,
    baseline: str,
    dtypes: Sequence[torch.dtype] = FLOATS,
) -> None:
    """There are advantages, or else rewards of groups; ``shapes`` knows B and T."""
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
        _check_advantages(shapes, advantages, dtypes)
        return
    group_ids = needed(shapes.op, "group_ids", group_ids, "rewards are given")
    rewards = needed(shapes.op, "rewards", rewards, "group_ids are given")
    if isinstance(rewards, Tensor) and rewards.dim() == 2 and rewards.shape[1] > 1:
        rows, columns = rewards.shape
        raise ValueError(
            f"{shapes.op}: rewards: expected shape [B], got {[rows, columns]} (of {rows} prompts: "
            f"rewards.flatten(), with group_ids torch.arange({rows}).repeat_interleave({columns}); "
            "several rewards of one completion: gdpo_advantage makes advantages of them)"
        )
    shapes("group_ids", group_ids, "B", check.INTS)
    shapes("rewards", rewards, "B", dtypes)


def advantages_or_rewards(
    op: str, advantages: Tensor | None, rewards: Tensor | None, group_ids: Tensor | None
) -> Tensor:
    """The advantages, or the rewards of groups, after ``check_advantage_inputs``."""
    if group_ids is not None and check.may_look(group_ids) and _all_different(group_ids):
        warnings.warn(
            f"{op}: group_ids: every completion is in a group of its own, so that every "
            "advantage is 0 and nothing is learnt; completions of one prompt have the same id",
            stacklevel=3,
        )
    if advantages is not None:
        return advantages
    assert rewards is not None
    return rewards.detach()


def _all_different(ids: Tensor) -> bool:
    if len(ids) < 2:
        return False
    least, most = map(int, ids.aminmax())  # mostly enough: fewer numbers than completions
    return most - least + 1 >= len(ids) == len(ids.unique())


def _check_advantages(
    shapes: check.Shapes, advantages: Tensor, dtypes: Sequence[torch.dtype]
) -> None:
    """[B] or [T], the former where B = T."""
    rows, count = shapes.sizes["T"], shapes.sizes["B"]
    if isinstance(advantages, Tensor):
        shape = list(advantages.shape)
        if len(shape) != 1:
            hint = ""
            if len(shape) == 2 and shape[0] in (rows, count) and shape[1] == 1:
                hint = " (.squeeze(-1) drops the last dimension)"
            elif len(shape) == 2 and shape[0] == count:
                hint = " (of padded ones, advantages[completion_mask.bool()] takes the tokens)"
            raise ValueError(
                f"{shapes.op}: advantages: expected shape [B] or [T], got {shape}{hint}"
            )
        if shape[0] not in (rows, count):
            raise ValueError(
                f"{shapes.op}: advantages: expected B = {count} elements, one a sequence of "
                f"cu_seqlens, or T = {rows}, one a token, got {shape}"
            )
    per_token = isinstance(advantages, Tensor) and advantages.shape[0] == rows
    shapes("advantages", advantages, "T" if per_token else "B", dtypes)


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
