"""Groups whose rewards are all the same are replaced, within a cap, and filled up otherwise."""

from __future__ import annotations

import pytest
import torch

from r1train.engine.base import Rollout
from r1train.learn.refill import Scored, choose_groups, constant_groups, refill


def scored(first, rewards, routing=True):
    """Groups of two completions: prompt [n], completion [n] * length, log-probabilities −n."""
    rows = [first + row // 2 for row in range(len(rewards))]
    lengths = [1 + row % 3 for row in range(len(rewards))]
    tokens = torch.tensor(rows).repeat_interleave(torch.tensor(lengths))
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    experts = [torch.full((2, 1, 1), row, dtype=torch.int16) for row in rows]
    rollout = Rollout(
        [[first + group] for group in range(len(rewards) // 2)],
        [row - first for row in rows],
        tokens,
        starts,
        -tokens.float(),
        [True] * len(rows),
        experts if routing else None,
        version=3,
    )
    return Scored(rollout, rewards)


def test_groups_are_compared_as_advantages_are_computed():
    rewards = [0.1 + 0.2, 0.3, 1.0, 1.5, 2.0, 2.0]
    assert constant_groups(rewards, [0, 0, 1, 1, 2, 2]) == [True, True, False, False, True, True]
    assert constant_groups([1.0, 0.0, 1.0, 0.0], [1, 0, 1, 0]) == [True] * 4  # in any order


def test_the_first_that_differ_are_kept_and_others_fill_up():
    rewards, groups = [1, 1, 0, 1, 2, 2, 0, 1, 1, 0], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert choose_groups(rewards, groups, 2) == ([1, 3], 0)
    assert choose_groups(rewards, groups, 4) == ([0, 1, 3, 4], 1)
    assert choose_groups(rewards, groups, 5) == ([0, 1, 2, 3, 4], 2)


@pytest.mark.parametrize("routing", [True, False])
def test_constant_groups_are_replaced(routing):
    asked = []

    def sample(count, attempt):
        asked.append((count, attempt))
        rewards = [[1, 1, 0, 1], [2, 0]][attempt - 1]
        return scored(10 * attempt, rewards[: 2 * count], routing)

    first = scored(0, [1, 1, 0, 1, 0, 0], routing)
    whole, attempts = refill(first, sample, 5)
    assert asked == [(2, 1), (1, 2)]
    assert attempts == 2
    rollout = whole.rollout
    assert rollout.prompts == [[1], [11], [20]]
    assert rollout.prompt_index == [0, 0, 1, 1, 2, 2]
    assert whole.rewards == [0, 1, 0, 1, 2, 0]
    for row, ids in enumerate(rollout.completion_ids):
        assert set(ids) == set(rollout.prompt_ids[row])
        if routing:
            assert rollout.routing[row].unique().tolist() == rollout.prompt_ids[row]
    assert torch.equal(rollout.logprobs, -rollout.tokens.float())
    assert len(rollout.finished) == 6
    assert (rollout.routing is not None) == routing
    assert rollout.version == 3


def test_the_cap_holds_and_the_update_keeps_its_size():
    never = refill(scored(0, [1, 1, 2, 2]), lambda count, attempt: scored(9, [1, 1] * count), 3)
    assert never[1] == 3
    assert never[0].rollout.prompts == [[0], [1]]
    first = scored(0, [1, 1, 0, 1])
    assert refill(first, pytest.fail, 0) == (first, 0)
    first = scored(0, [1, 0, 0, 1])
    assert refill(first, pytest.fail, 3) == (first, 0)
