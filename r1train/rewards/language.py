"""Language consistency: how much of the chain of thought is in the language of the question."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from r1train.config.rewards import RewardConfig
from r1train.data.problems import Problem, ProblemSet
from r1train.data.response import thoughts
from r1train.data.samples import Sample
from r1train.rewards.base import Reward, Scores
from r1train.rewards.identify import SCRIPTS, check_installed, detect, in_language, language_code
from r1train.rewards.words import words_of

MOST_NOTATION = 2
"""A dense proof has as many names of points as words; what is said in English needs more of its
words than that, and many of them once."""


def language_ratio(text: str, language: str) -> float:
    """Words of `language` ("en", "zh": a code of `identify.SCRIPTS`) over all words of `text`, in
    [0, 1]; 0 where it has none.

    DeepSeek-R1 (arXiv 2501.12948, section 2.3.2): Words_target / Words. What a word is, and what
    counts neither way, is said in `r1train.rewards.words`. Where the language is not written in
    Latin letters, `r1train.rewards.notation` counts neither way too: what only looks like it up to
    `MOST_NOTATION` different words for each word of the language, so that nothing hides in it.
    """
    words = list(words_of(text))
    if "Latin" in SCRIPTS[language]:
        total = sum(word.weight for word in words)
        return in_language(words, language) / total if total else 0.0
    own = in_language(words, language)
    plain = sum(word.weight for word in words if word.notation == "no")
    doubtful = {  # ∠ABC is ∠CBA
        "".join(sorted(word.text)): word.weight for word in words if word.notation == "maybe"
    }
    hidden = max(0, sum(doubtful.values()) - MOST_NOTATION * own)
    return own / (plain + hidden) if own else 0.0


def target_language(problem: Problem) -> str | None:
    """What the problem's `language` field names, else the language of the question; None where the
    question has no words."""
    fields = (problem.columns.get("language"), problem.metadata.get("language"))
    named = [code for field in fields if (code := language_code(field)) is not None]
    return named[0] if named else _detect(problem.question)


class LanguageReward(Reward):
    """`language_ratio` of the chain of thought; None where the problem says no language.

    A chain without a word has 0, and so earns nothing: it is as little readable as a mixed one, and
    an empty chain must not be worth more than an honest slip. ConfigError where py3langid is not
    installed.
    """

    def __init__(self, config: RewardConfig, problems: ProblemSet) -> None:
        check_installed()

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        return Scores([self._value(sample) for sample in samples])

    @staticmethod
    def _value(sample: Sample) -> float | None:
        language = target_language(sample.problem)
        if language is None:
            return None
        return language_ratio(thoughts(sample.completion), language)


_detect = lru_cache(maxsize=4096)(detect)
