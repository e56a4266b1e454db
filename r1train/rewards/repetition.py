"""Repetition: a penalty for saying the same again, which is how long chains fill their length."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from r1train.config.rewards import RewardConfig
from r1train.data.problems import ProblemSet
from r1train.data.prompts import TAGS
from r1train.data.samples import Sample
from r1train.rewards.base import Reward, Scores
from r1train.rewards.words import seen

_WORDS = regex.compile(r"\p{Han}{1,2}|[^\s\p{Han}]{1,24}")
"""Chinese words have two characters as a rule; no word goes on without end."""


def repetition_penalty(text: str, ngram_size: int = 3) -> float:
    """(distinct n-grams / n-grams) − 1 of the words of `text`, in (−1, 0]; 0 where it has none.

    `get_repetition_penalty_reward` of Open-R1 (src/open_r1/rewards.py), which takes it from
    Demystifying Long CoT (arXiv 2502.03373), with a greatest penalty of −1: `rewards.weights` has
    another. Tags part words, and are none; characters that cannot be seen make no word another.
    """
    for tag in TAGS:
        text = text.replace(tag, " ")
    words = _WORDS.findall(seen(text).lower())
    ngrams = list(zip(*(words[start:] for start in range(ngram_size)), strict=False))
    return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0


class RepetitionReward(Reward):
    """`repetition_penalty` of each completion."""

    def __init__(self, config: RewardConfig, problems: ProblemSet) -> None:
        self.ngram_size = config.repetition.ngram_size

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        return Scores([repetition_penalty(s.completion, self.ngram_size) for s in samples])
