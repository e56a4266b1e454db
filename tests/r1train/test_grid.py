from __future__ import annotations

import pytest

from r1train.engine.grid import arrange


@pytest.mark.parametrize(
    ("counts", "group", "slots"),
    [
        ([6, 6], 6, 12),  # groups of equal size share their prompts as they are
        ([16, 16, 16, 5], 8, 56),  # of 53 rows; groups of 16 would leave 11 slots empty
        ([1, 1, 4], 1, 6),
        ([1], 1, 1),
    ],
)
def test_groups_are_the_largest_that_leave_few_slots_empty(counts, group, slots):
    prompt_of = [prompt for prompt, count in enumerate(counts) for _ in range(count)]
    grid = arrange(range(len(prompt_of)), prompt_of)
    assert (grid.group, len(grid.rows)) == (group, slots)
    assert [row for row in grid.rows if row >= 0] == [*range(len(prompt_of))]
    for slot, row in enumerate(grid.rows):
        assert row < 0 or grid.prompts[slot // group] == prompt_of[row]


def test_on_a_gpu_numbers_are_powers_of_two():
    prompt_of = [prompt for prompt in range(3) for _ in range(5)]
    grid = arrange(range(15), prompt_of, powers_of_two=True)
    assert grid.group == 1  # 2 leave three slots of 18 empty
    assert len(grid.rows) == 16
    assert arrange(range(15), [0] * 15, powers_of_two=True).group == 8


def test_rows_are_found_where_they_were():
    prompt_of = [0, 0, 0, 0, 1, 1, 1, 1]
    whole = arrange(range(8), prompt_of)
    rest = arrange([1, 6, 7], prompt_of)
    assert rest.slots_of(whole) == [1, 6, 7]
    assert rest.groups_of(whole) == [0, 1, 1]
    again = arrange([6], prompt_of)
    assert again.slots_of(rest) == [1]
    assert [rest.prompts[group] for group in again.groups_of(rest)] == [1]
