"""The penalty for n-grams that were there before."""

import random

import pytest

from r1train.config.rewards import RepetitionConfig, RewardConfig
from r1train.data.problems import ProblemSet
from r1train.rewards.repetition import RepetitionReward, repetition_penalty
from tests.r1train.samples import ONE, sample


@pytest.mark.parametrize(
    ("text", "penalty"),
    [
        ("", 0),
        ("one two", 0),  # no n-gram
        ("one two three four", 0),
        ("one two three one two three", 3 / 4 - 1),
        ("One two three, one two three,", 3 / 4 - 1),
        ("wait " * 102, 1 / 100 - 1),
        ("我们先计算总和", 0),
        ("我们先计算总和。" * 3, 5 / 13 - 1),  # 我们 先计 算总 和。: four words a sentence
        ("a" * 24 * 12, 1 / 10 - 1),  # a word without end is many
        ("\n \t", 0),
    ],
)
def test_the_share_that_is_repeated(text, penalty):
    assert repetition_penalty(text) == pytest.approx(penalty, abs=1e-12)


def open_r1(text, ngram_size):
    """As it stands there, for one completion, with max_penalty −1."""
    ngrams, total, words = set(), 0, text.lower().split()
    if len(words) < ngram_size:
        return 0.0
    for ng in zip(*[words[i:] for i in range(ngram_size)], strict=False):
        ngrams.add(ng)
        total += 1
    return (1 - len(ngrams) / total) * -1.0


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_it_is_the_penalty_of_open_r1(size):
    rng = random.Random(size)
    for length in range(60):
        text = " ".join(rng.choices(["so", "we", "have", "x=2,", "Thus"], k=length))
        assert repetition_penalty(text, size) == pytest.approx(open_r1(text, size), abs=1e-12)


def test_the_reward_has_its_n():
    reward = RepetitionReward(
        RewardConfig(repetition=RepetitionConfig(ngram_size=1)), ProblemSet([ONE], ())
    )
    assert reward([sample(ONE, "no no"), sample(ONE, "no")]).values == [-0.5, 0]
