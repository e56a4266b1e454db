"""Answers that are right or not: mathematics by `verify`, and letters of choices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from r1train.answers.clean import split
from r1train.suite.metrics.base import MetricBase, Response, Score
from r1train.verify import verify

_GROUPED = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
_SIGNS = re.compile(r"\\pm(?![a-zA-Z])|±")
_ONE_IN_BRACES = re.compile(r"([_^])\{(\w)\}")


class MathMetric(MetricBase):
    """1 where the answer is the reference's value, however it is written."""

    def __call__(self, responses: Sequence[Response]) -> list[Score]:
        return [
            Score(0.0 if one.answer is None else is_right(one.answer, one.question.reference))
            for one in responses
        ]


class ChoiceMetric(MetricBase):
    """1 for the letter of the right choice."""

    def __call__(self, responses: Sequence[Response]) -> list[Score]:
        return [Score(float(one.answer == one.question.reference)) for one in responses]


@lru_cache(1 << 16)
def is_right(answer: str, reference: str) -> float:
    """`verify`, and what competitions mean by their solutions: those that are listed without
    brackets, or by ±, may be given in any order, and AIME's 041 is 41."""
    answer, reference = _spelled(answer), _spelled(reference)
    if verify(answer, reference) == 1.0:
        return 1.0
    if _SIGNS.search(answer) or _SIGNS.search(reference):
        answer, reference = _both_signs(answer), _both_signs(reference)
    several = len(split(reference, ",")) > 1 and not _GROUPED.fullmatch(reference)
    return verify(answer, reference, answer_type="set") if several else 0.0


def _spelled(text: str) -> str:
    text = _ONE_IN_BRACES.sub(r"\1\2", text)
    return str(int(text)) if text.isascii() and text.isdecimal() and len(text) < 100 else text


def _both_signs(text: str) -> str:
    """x ± y as x + y, x − y."""
    if not _SIGNS.search(text):
        return text
    return ", ".join(_SIGNS.sub(sign, text) for sign in "+-")
