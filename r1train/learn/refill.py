"""Groups without a policy gradient, and what is sampled in their place (DAPO, arXiv 2503.14476)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


def constant_groups(rewards: Sequence[float], groups: Sequence[int]) -> list[bool]:
    """[B]: whether all completions of completion i's group have its reward.

    Compared in float32, as advantages are computed: there they are zero then.
    """
    reward, group = torch.tensor(rewards, dtype=torch.float32), torch.tensor(groups)
    ends = [
        reward.new_zeros(max(groups) + 1).scatter_reduce_(0, group, reward, how, include_self=False)
        for how in ("amin", "amax")
    ]
    constant: list[bool] = (ends[0] == ends[1])[group].tolist()
    return constant


class Choice(NamedTuple):
    """Which groups an update is made of, and how many more prompts should be sampled first."""

    keep: list[int]
    """Groups in the order they came in, at most as many as were wanted."""
    missing: int
    """How many of them have no gradient."""


def choose_groups(rewards: Sequence[float], groups: Sequence[int], wanted: int) -> Choice:
    """The first `wanted` groups whose rewards differ, filled up with others where these are fewer.

    Those cost nothing in an update without a KL or entropy term, and keep what it is normalised by.
    """
    constant = dict(zip(groups, constant_groups(rewards, groups), strict=True))
    differing = [group for group, same in constant.items() if not same][:wanted]
    others = [group for group, same in constant.items() if same][: wanted - len(differing)]
    return Choice(sorted([*differing, *others]), wanted - len(differing))
