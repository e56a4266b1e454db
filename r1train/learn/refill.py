"""Groups without a policy gradient, and what is sampled in their place (DAPO, arXiv 2503.14476)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from r1train.engine.base import Rollout


def constant_groups(rewards: Sequence[float], groups: Sequence[int]) -> list[bool]:
    """[B]: whether all completions of completion i's group have its reward.

    Compared in float32, as advantages are computed: there they are zero then.
    """
    reward, group = torch.tensor(rewards, dtype=torch.float32), torch.tensor(groups)
    low, high = (
        reward.new_zeros(max(groups) + 1).scatter_reduce_(0, group, reward, how, include_self=False)
        for how in ("amin", "amax")
    )
    constant: list[bool] = (low == high)[group].tolist()
    return constant


class Choice(NamedTuple):
    """Which groups an update is made of, and how many it lacks."""

    keep: list[int]
    """Groups in the order they came in, at most as many as were wanted."""
    missing: int
    """How many of the wanted ones are, so far, groups without a gradient."""


def choose_groups(rewards: Sequence[float], groups: Sequence[int], wanted: int) -> Choice:
    """The first `wanted` groups whose rewards differ, filled up with others where these are fewer.

    Those cost nothing in an update without a KL or entropy term, and keep what it is normalised by.
    """
    constant = dict(zip(groups, constant_groups(rewards, groups), strict=True))
    differing = [group for group, same in constant.items() if not same][:wanted]
    others = [group for group, same in constant.items() if same][: wanted - len(differing)]
    return Choice(sorted([*differing, *others]), wanted - len(differing))


class Scored(NamedTuple):
    """A rollout and the reward of each of its completions."""

    rollout: Rollout
    rewards: Sequence[float]


def refill(first: Scored, sample: Callable[[int, int], Scored], limit: int) -> tuple[Scored, int]:
    """As many groups as `first` has, those without a gradient replaced as far as may be.

    `sample(count, attempt)` gives groups of `count` other prompts, and is asked at most `limit`
    times: attempt 1, 2, …. Returns the groups and how often it was asked.
    """
    whole, wanted = first, len(first.rollout.prompts)
    for attempt in range(limit + 1):
        keep, missing = choose_groups(whole.rewards, whole.rollout.prompt_index, wanted)
        if not missing or attempt == limit:
            break
        whole = _join(whole, sample(missing, attempt + 1))
    return _take(whole, keep), attempt


def _join(first: Scored, second: Scored) -> Scored:
    """The groups of both, one after another."""
    a, b = first.rollout, second.rollout
    routing = None if a.routing is None or b.routing is None else [*a.routing, *b.routing]
    return Scored(
        Rollout(
            [*a.prompts, *b.prompts],
            [*a.prompt_index, *(index + len(a.prompts) for index in b.prompt_index)],
            torch.cat([a.tokens, b.tokens]),
            torch.cat([a.cu_seqlens, b.cu_seqlens[1:] + a.cu_seqlens[-1]]),
            torch.cat([a.logprobs, b.logprobs]),
            [*a.finished, *b.finished],
            routing,
            a.version,
        ),
        [*first.rewards, *second.rewards],
    )


def _take(whole: Scored, groups: Sequence[int]) -> Scored:
    """Some of the groups, numbered anew."""
    rollout, number = whole.rollout, {group: place for place, group in enumerate(groups)}
    rows = [row for row, group in enumerate(rollout.prompt_index) if group in number]
    if len(rows) == len(rollout):
        return whole
    tokens, logprobs = (t.split(rollout.lengths) for t in (rollout.tokens, rollout.logprobs))
    starts = [0, *accumulate(rollout.lengths[row] for row in rows)]
    return Scored(
        Rollout(
            [rollout.prompts[group] for group in groups],
            [number[rollout.prompt_index[row]] for row in rows],
            torch.cat([tokens[row] for row in rows]),
            torch.tensor(starts, dtype=torch.int32, device=rollout.cu_seqlens.device),
            torch.cat([logprobs[row] for row in rows]),
            [rollout.finished[row] for row in rows],
            None if rollout.routing is None else [rollout.routing[row] for row in rows],
            rollout.version,
        ),
        [whole.rewards[row] for row in rows],
    )
