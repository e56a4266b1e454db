from __future__ import annotations

import pytest

from r1train.data.problems import Problem
from r1train.data.samples import Sample
from r1train.rewards.reflection import reflective_words
from r1train.rewards.registry import find_reward


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Wait, that is wrong. Let me check: 3", 3),
        ("two plus two equals five wait four", 1),
        ("二 加 二 等于 五 等等 四", 1),
        ("不对,再检查一次", 2),
        ("waiter, button, checked", 0),  # whole words alone
        ("等于", 0),
        ("", 0),
    ],
)
def test_reflective_words(text, count):
    assert reflective_words(text) == count


def test_the_reward_is_their_number():
    name, make = find_reward("reflection")
    samples = [Sample(Problem("t", 0, "q", "1"), "q", text, [], True) for text in ("wait", "a")]
    assert name == "reflection"
    assert make(None, None)(samples).values == [1.0, 0.0]
