"""Facts, graded by a judge: SimpleQA (Wei et al. 2024, arXiv 2411.04368).

The grades are its authors'; the words of the request are not theirs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1train.config.sections import Config
from r1train.rewards.judge.client import ChatClient, Failure
from r1train.rewards.judge.verdicts import asked_of, verdict_of
from r1train.suite.metrics.base import MetricBase, Response, Score
from r1train.suite.specs import Benchmark

_RUBRIC = (
    "Grade the response to the question by the reference answer. CORRECT: it says all that the "
    "reference says, and nothing that contradicts it. INCORRECT: something in it contradicts the "
    "reference, hedged or not. NOT_ATTEMPTED: the reference's information is not all there, and "
    "nothing contradicts it, as where the response says that it does not know. Meaning alone "
    "counts: not case, punctuation, order, or a name's spelling where it is clear who is meant. A "
    "number is right where it is right to the last digit of the reference. What the question "
    "already says need not be repeated."
)
_FORM = "Grade: X\nwhere X is CORRECT, INCORRECT or NOT_ATTEMPTED."
_GRADE = re.compile(r"Grade: ?(CORRECT|INCORRECT|NOT_ATTEMPTED)")


class JudgedMetric(MetricBase):
    """1 for what the judge calls correct; None where it gives no grade."""

    def __init__(self, benchmark: Benchmark, config: Config) -> None:
        super().__init__(benchmark, config)
        self.client = ChatClient(config.suite.judge)

    def __call__(self, responses: Sequence[Response]) -> list[Score]:
        asked = [
            asked_of(
                _RUBRIC,
                _FORM,
                {
                    "QUESTION": one.question.text,
                    "REFERENCE": str(one.question.reference),
                    "RESPONSE": one.summary,
                },
            )
            for one in responses
        ]
        return [_score(verdict_of(answer, _GRADE)) for answer in self.client.ask(asked)]

    def figures(self, responses: Sequence[Response], scores: Sequence[Score]) -> dict[str, float]:
        """Shares of the grades, and SimpleQA's F-score: the harmonic mean of correct and of
        correct among what was attempted."""
        grades = [score.detail["grade"] for score in scores if score.value is not None]
        share = {
            grade: grades.count(grade) / len(grades)
            for grade in ("CORRECT", "INCORRECT", "NOT_ATTEMPTED")
        }
        attempted = share["CORRECT"] + share["INCORRECT"]
        given = share["CORRECT"] / attempted if attempted else 0.0
        both = share["CORRECT"] + given
        return {
            "incorrect": share["INCORRECT"],
            "not_attempted": share["NOT_ATTEMPTED"],
            "correct_given_attempted": given,
            "f_score": 2 * share["CORRECT"] * given / both if both else 0.0,
        }


def _score(grade: str | Failure) -> Score:
    if isinstance(grade, Failure):
        return Score(None, {"failure": grade.message})
    return Score(float(grade == "CORRECT"), {"grade": grade})
