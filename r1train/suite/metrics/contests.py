"""Codeforces: a rating by the people of the same contests, and the share of them below it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from r1train.config.sections import Config
from r1train.suite.metrics.base import Response, Score, with_interval
from r1train.suite.metrics.programs import ProgramMetric
from r1train.suite.specs import Benchmark

LOWEST, HIGHEST = 0.0, 4000.0
_RESAMPLES = 400


@dataclass(frozen=True)
class Contest:
    """A model among the people of a contest."""

    ratings: Sequence[float]
    """Of each participant, before the contest."""
    wins: Sequence[float]
    """Against each: the share of attempts with more points than theirs; half for as many."""


class ContestMetric(ProgramMetric):
    """Solved problems, and the rating that they are worth.

    Completion j of every problem of a contest is one attempt at that contest.
    """

    def __init__(self, benchmark: Benchmark, config: Config) -> None:
        super().__init__(benchmark, config)
        whole = "a rating needs whole contests: leave it unset for Codeforces"
        config.suite.require(config.suite.limit is None, "limit", whole)

    def figures(self, responses: Sequence[Response], scores: Sequence[Score]) -> dict[str, float]:
        contests = _contests(responses, scores)
        found = rating(contests)
        rng = random.Random(0)
        drawn = sorted(rating(rng.choices(contests, k=len(contests))) for _ in range(_RESAMPLES))
        tail = (1 - self.config.suite.confidence) / 2
        ratings = found, drawn[int(tail * len(drawn))], drawn[-1 - int(tail * len(drawn))]
        people = [one for contest in contests for one in contest.ratings]
        percentiles = [fmean(one < value for one in people) for value in ratings]
        solved = [score.value for score in scores]
        return {
            **with_interval("rating", ratings, solved),
            **with_interval("percentile", percentiles, solved),
        }


def rating(contests: Sequence[Contest]) -> float:
    """The maximum-likelihood Elo rating: where as many wins are expected as there were.

    Each participant is an opponent of known rating, beaten with probability
    1 / (1 + 10^((their rating − rating) / 400)); the derivative of the log-likelihood is the wins
    less those that are expected, as where CodeElo (arXiv 2501.01257) solves for a rank.
    """
    wins = sum(sum(contest.wins) for contest in contests)
    low, high = LOWEST, HIGHEST
    while high - low > 0.01:
        middle = (low + high) / 2
        expected = sum(
            1 / (1 + 10 ** ((theirs - middle) / 400))
            for contest in contests
            for theirs in contest.ratings
        )
        low, high = (middle, high) if expected < wins else (low, middle)
    return (low + high) / 2


def _contests(responses: Sequence[Response], scores: Sequence[Score]) -> list[Contest]:
    """The attempts at each contest, against its people."""
    solved: dict[str, dict[str, list[float]]] = {}
    fields: dict[str, Sequence[Sequence[float]]] = {}
    for one, score in zip(responses, scores, strict=True):
        reference: Mapping[str, object] = one.question.reference
        contest = solved.setdefault(str(reference["contest"]), {})
        earned = float(reference["worth"]) * (score.value or 0.0)  # type: ignore[arg-type]
        contest.setdefault(one.question.id, []).append(earned)
        fields[str(reference["contest"])] = reference["field"]  # type: ignore[assignment]
    found = []
    for name, problems in solved.items():
        attempts = [sum(points) for points in zip(*problems.values(), strict=True)]
        wins = [
            fmean((points > theirs) + (points == theirs) / 2 for points in attempts)
            for _, theirs in fields[name]
        ]
        found.append(Contest([one for one, _ in fields[name]], wins))
    return found
