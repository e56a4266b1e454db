"""Micro-batches: whole groups, real tokens, no more of them than needed."""

from __future__ import annotations

import random

import pytest

from r1train.learn.batch import micro_batches


def rollout(lengths):
    """Prompts and completions of groups, given as (length of the prompt, those of completions)."""
    prompts = [[group] * prompt for group, (prompt, own) in enumerate(lengths) for _ in own]
    completions = [[0] * length for _, own in lengths for length in own]
    return prompts, completions


def tokens(part, prompts, completions):
    """What a part counts: its distinct prompts once, and its completions."""
    distinct = {tuple(prompts[row]) for row in part}
    return sum(map(len, distinct)) + sum(len(completions[row]) for row in part)


def random_rollout(seed):
    rng = random.Random(seed)
    size = rng.randint(1, 8)
    lengths = [
        (rng.randint(1, 20), [rng.randint(1, 40) for _ in range(size)])
        for _ in range(rng.randint(1, 12))
    ]
    prompts, completions = rollout(lengths)
    order = list(range(len(prompts)))
    if seed % 2:  # minibatches are drawn: groups are not adjacent
        rng.shuffle(order)
    return [prompts[row] for row in order], [completions[row] for row in order]


@pytest.mark.parametrize("seed", range(40))
def test_the_budget_holds_every_row_is_there_and_groups_stay_whole(seed):
    prompts, completions = random_rollout(seed)
    for budget in (1, 30, 100, 300, 10_000):
        parts = micro_batches(prompts, completions, budget)
        assert sorted(row for part in parts for row in part) == list(range(len(prompts)))
        assert all(len(p) == 1 or tokens(p, prompts, completions) <= budget for p in parts)
        for prompt in set(map(tuple, prompts)):
            group = [row for row, other in enumerate(prompts) if tuple(other) == prompt]
            within = [part for part in parts if {*part} & {*group}]
            assert len(within) == 1 or tokens(group, prompts, completions) > budget
        assert parts == micro_batches(prompts, completions, budget)


@pytest.mark.parametrize("seed", range(10))
def test_what_fits_is_one_part(seed):
    prompts, completions = random_rollout(seed)
    exact = tokens(range(len(prompts)), prompts, completions)
    assert len(micro_batches(prompts, completions, exact)) == 1
    if len(set(map(tuple, prompts))) > 1:
        assert len(micro_batches(prompts, completions, exact - 1)) > 1


def test_prompts_count_once_and_padding_not_at_all():
    prompts, completions = rollout([(100, [10] * 16), (50, [1, 1, 1, 90])])
    assert micro_batches(prompts, completions, 260) == [[*range(16)], [*range(16, 20)]]
    assert len(micro_batches(prompts, completions, 260 + 143)) == 1


def test_groups_of_like_lengths_are_neighbours():
    prompts, completions = rollout([(1, [9, 9]), (2, [2, 2]), (3, [8, 8]), (4, [3, 3])])
    assert micro_batches(prompts, completions, 40) == [[2, 3, 6, 7, 4, 5], [0, 1]]


def test_a_group_beyond_the_budget_is_split_by_length_and_a_row_beyond_it_is_alone():
    prompts, completions = rollout([(5, [30, 1, 2, 30])])
    assert micro_batches(prompts, completions, 10) == [[1, 2], [0], [3]]
    assert micro_batches([], [], 10) == []
