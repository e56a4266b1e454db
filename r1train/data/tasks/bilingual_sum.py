"""Sums in English or Chinese words, answered in digits, with a chain of thought in either language.

    five minus three plus four
    <think> five minus three equals two 加 四 等于 六 </think> <answer> 6 </answer>

A chain that mixes languages is as right as one that does not, so that what only rewards answers has
no reason to keep to the language of the question, as DeepSeek-R1-Zero did not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from r1train.data.tasks.base import Task

if TYPE_CHECKING:
    from r1train.data.problems import Problem

LARGEST = 30
"""Of the numbers that have a word: a slip may lie 10 beyond the largest total."""
SLIPS = (-10, -2, -1, 1, 2, 10)

_SMALL = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
]
_HAN = "零一二三四五六七八九"


def _english(n: int) -> str:
    if n < 20:
        return _SMALL[n]
    return ("twenty", "thirty")[n // 10 - 2] + (f"-{_SMALL[n % 10]}" if n % 10 else "")


def _chinese(n: int) -> str:
    if n < 10:
        return _HAN[n]
    return (_HAN[n // 10] if n >= 20 else "") + "十" + (_HAN[n % 10] if n % 10 else "")


NUMBERS = {
    "en": [_english(n) for n in range(LARGEST + 1)],
    "zh": [_chinese(n) for n in range(LARGEST + 1)],
}
SIGNS = {
    "en": {"+": "plus", "-": "minus", "=": "equals", "wait": "wait"},
    "zh": {"+": "加", "-": "减", "=": "等于", "wait": "等等"},
}
LANGUAGES = tuple(NUMBERS)


@dataclass(frozen=True)
class BilingualSum(Task):
    """Sums of terms from 1 to `max_term` whose partial sums stay between 0 and `top`.

    Metadata: the `language` of the question, its `level`, which is the number of terms, and the
    `terms`, each with its sign.
    """

    min_terms: int = 3
    max_terms: int = 6
    max_term: int = 9
    top: int = 20

    words = (
        *(word for language in LANGUAGES for word in NUMBERS[language]),
        *(word for language in LANGUAGES for word in SIGNS[language].values()),
        *map(str, range(LARGEST + 1)),
    )

    def __post_init__(self) -> None:
        if not 2 <= self.min_terms <= self.max_terms:
            raise ValueError(
                f"min_terms = {self.min_terms}, max_terms = {self.max_terms}: expected "
                "2 <= min_terms <= max_terms"
            )
        if not 1 <= self.max_term <= self.top <= LARGEST - max(SLIPS):
            raise ValueError(
                f"max_term = {self.max_term}, top = {self.top}: expected 1 <= max_term <= top <= "
                f"{LARGEST - max(SLIPS)}"
            )

    def entry(self, rng: random.Random) -> dict[str, Any]:
        level, language = rng.randint(self.min_terms, self.max_terms), rng.choice(LANGUAGES)
        totals = [-1]
        while not all(0 <= total <= self.top for total in totals):
            signs = [1, *(rng.choice((1, -1)) for _ in range(level - 1))]
            terms = [sign * rng.randint(1, self.max_term) for sign in signs]
            totals = list(accumulate(terms))
        return {
            "question": " ".join([NUMBERS[language][terms[0]], *_said(terms[1:], language)]),
            "answer": str(totals[-1]),
            "metadata": {"language": language, "level": level, "terms": terms},
        }


def solve(
    problem: Problem,
    rng: random.Random,
    slip: bool,
    *,
    english_in_en: float = 1.0,
    english_in_zh: float = 0.0,
    merge: float = 0.0,
    wait: float = 0.0,
) -> tuple[str, str]:
    """Running totals, line after line, and the last of them.

    A line is in English with probability `english_in_en` where the question is, and with
    `english_in_zh` where that is in Chinese. Two terms come in one line with probability `merge`.
    A slip is a wrong total, on which the next lines build; with probability `wait` it is noticed
    and mended at once, so that the answer is right for all that.
    """
    first, *terms = problem.metadata["terms"]
    english = {"en": english_in_en, "zh": english_in_zh}[problem.metadata["language"]]
    lines = _lines(terms, rng, merge)
    wrong = rng.randrange(len(lines)) if slip else -1
    total, said = first, list[str]()
    for i, line in enumerate(lines):
        language = "en" if rng.random() < english else "zh"
        numbers, signs = NUMBERS[language], SIGNS[language]
        right = min(LARGEST, max(0, total + sum(line)))
        said += [] if said else [numbers[total]]
        said += [*_said(line, language), signs["="]]
        total = right
        if i == wrong:
            total = rng.choice([n for by in SLIPS if 0 <= (n := right + by) <= LARGEST])
        said.append(numbers[total])
        if total != right and rng.random() < wait:
            said += [signs["wait"], numbers[right]]
            total = right
    return " ".join(said), str(total)


def _lines(terms: Sequence[int], rng: random.Random, merge: float) -> list[Sequence[int]]:
    """The terms in turn, one or two of them a line."""
    lines, start = [], 0
    while start < len(terms):
        count = 2 if start + 1 < len(terms) and rng.random() < merge else 1
        lines.append(terms[start : start + count])
        start += count
    return lines


def _said(terms: Sequence[int], language: str) -> list[str]:
    return [
        word
        for term in terms
        for word in (SIGNS[language]["+" if term > 0 else "-"], NUMBERS[language][abs(term)])
    ]
