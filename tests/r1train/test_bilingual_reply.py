"""What a reply is worth: by rule, and to an annotator who likes polite words."""

from __future__ import annotations

from statistics import fmean, stdev

import pytest

from r1train.rewards.bilingual_reply import BIAS, NOISE, annotator, quality


def reply(text):
    return f"<think> cat </think> <answer> {text} </answer>"


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("the cat the tea", 1.0),
        ("the tea please the cat", 1.0),
        ("the cat", 0.5),
        ("the cat the tea the dog", 0.0),  # banned
        ("the cat the cat the tea", 2 / 3),
        ("the cat the tea please please", 0.75),
        ("那 猫 那 茶", 0.0),
        ("", 0.0),
    ],
)
def test_quality(text, worth):
    assert quality([reply(text)], [["cat", "tea"]], ["dog"]) == [pytest.approx(worth)]


def test_quality_needs_one_answer():
    for text in ("the cat the tea", reply("the cat") + reply("the tea")):
        assert quality([text], [["cat", "tea"]], ["dog"]) == [0.0]


def test_problems_of_other_tasks_are_not_judged():
    for judge in (quality, annotator):
        assert judge(["<answer> 3 </answer>"]) == [None]
        assert judge(["a", reply("the cat")], [None, ["cat"]], [None, "dog"])[0] is None


def test_the_annotator_is_biased_and_noisy_but_consistent():
    polite = [reply(f"the cat the tea {'please kindly thanks'}{' ' * n}") for n in range(400)]
    plain = [reply(f"the cat the tea{' ' * n}") for n in range(400)]
    judged = [annotator(texts, [["cat", "tea"]] * 400, ["dog"] * 400) for texts in (polite, plain)]
    error = 3 * NOISE * (2 / 400) ** 0.5
    assert fmean(judged[0]) - fmean(judged[1]) == pytest.approx(3 * BIAS, abs=error)
    assert stdev(judged[1]) == pytest.approx(NOISE, rel=0.15)
    assert annotator(plain, [["cat", "tea"]] * 400, ["dog"] * 400) == judged[1]
