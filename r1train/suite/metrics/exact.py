"""Answers that are right or not: mathematics by `verify`, and letters of choices."""

from __future__ import annotations

from collections.abc import Sequence

from r1train.suite.metrics.base import MetricBase, Response, Score
from r1train.verify import verify


class MathMetric(MetricBase):
    """1 where the answer is the reference's value, however it is written."""

    def __call__(self, responses: Sequence[Response]) -> list[Score]:
        return [
            Score(0.0 if one.answer is None else verify(one.answer, one.question.reference))
            for one in responses
        ]


class ChoiceMetric(MetricBase):
    """1 for the letter of the right choice; an answer block may have its text instead."""

    def __call__(self, responses: Sequence[Response]) -> list[Score]:
        return [Score(float(one.answer == one.question.reference)) for one in responses]
