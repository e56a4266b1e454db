"""Preference over a baseline's answers by a judge: AlpacaEval 2 and ArenaHard.

Each pair is judged in both orders. As in R1's report the judge sees summaries alone, so that long
chains of thought neither gain nor lose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from r1train.config.sections import Config
from r1train.rewards.judge.client import ChatClient, Failure
from r1train.rewards.judge.verdicts import RUBRIC, asked_of, compare, verdict_of
from r1train.suite.metrics.base import MetricBase, Response, Score, with_interval
from r1train.suite.specs import Benchmark

_STEPS, _RIDGE, _RESAMPLES = 25, 1e-3, 400
_GAMED = 0.1  # their λ of 0.2 is shared by two ways to game the baseline
_LENGTH, _HELD = 1.2, 100.0
"""The coefficient of length, and how strongly it is held there, where no gamed answers are given.
On the published annotations of 56 models the shares are then 1.3 points from the authors' on
average and 3.1 at most; with a free coefficient, 6.6 and 28."""
_FORM = (
    "Verdict: X\nwhere X is A>>B (A is significantly better), A>B (slightly better), A=B, B>A or "
    "B>>A."
)
_VERDICT = re.compile(r"Verdict: ?(A>>B|A>B|A=B|B>A|B>>A)")
_VOTES = {"A>>B": [1.0] * 3, "A>B": [1.0], "A=B": [0.5], "B>A": [0.0], "B>>A": [0.0] * 3}
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """A response and the baseline's, and what AlpacaEval's authors know of the instruction."""

    won: float
    """How far the response is preferred, in [0, 1]."""
    longer: float
    """By how many characters."""
    difficulty: float = 0.0
    """Of the instruction; 0 where nothing is known of it."""
    gamed: Sequence[Sequence[float]] = ()
    """Of answers of the baseline that are concise or verbose by intent: how far each is preferred
    over its own, and how much shorter it is, in standard deviations."""


class PairwiseMetric(MetricBase):
    """How far a response is preferred: 1, 0, or between for a tie and where the orders differ."""

    def __init__(self, benchmark: Benchmark, config: Config) -> None:
        super().__init__(benchmark, config)
        self.client = ChatClient(config.suite.judge)

    def __call__(self, responses: Sequence[Response]) -> list[Score]:
        triples = [(one.question.text, one.summary, one.question.reference["answer"])
                   for one in responses]  # fmt: skip
        return [
            Score(None, {"failure": share.message}) if isinstance(share, Failure) else Score(share)
            for share in compare(self.client, triples)
        ]

    def figures(self, responses: Sequence[Response], scores: Sequence[Score]) -> dict[str, float]:
        comparisons = [
            Comparison(
                won=score.value,
                longer=len(one.summary) - len(one.question.reference["answer"]),
                difficulty=one.question.reference["difficulty"] or 0.0,
                gamed=one.question.reference["gamed"],
            )
            for one, score in zip(responses, scores, strict=True)
            if score.value is not None
        ]
        found = length_controlled(comparisons, self.config.suite.confidence)
        return with_interval("lc_winrate", found, [one.won for one in comparisons])


class BattleMetric(PairwiseMetric):
    """The mean of the votes of both orders, of which a significant difference has three."""

    def __call__(self, responses: Sequence[Response]) -> list[Score]:
        orders = [
            (one.question.text, *pair)
            for one in responses
            for both in [(one.summary, one.question.reference["answer"])]
            for pair in (both, both[::-1])
        ]
        asked = [
            asked_of(RUBRIC, _FORM, {"QUESTION": question, "RESPONSE A": a, "RESPONSE B": b})
            for question, a, b in orders
        ]
        verdicts = [verdict_of(answer, _VERDICT) for answer in self.client.ask(asked)]
        return [_votes(*pair) for pair in zip(verdicts[::2], verdicts[1::2], strict=True)]

    def figures(self, responses: Sequence[Response], scores: Sequence[Score]) -> dict[str, float]:
        """ArenaHard's score is over all votes, whichever questions they are on."""
        return {
            "win_rate": fmean(vote for score in scores for vote in score.detail.get("votes", []))
        }


def _votes(first: str | Failure, second: str | Failure) -> Score:
    """For the response that is A in the first order and B in the second."""
    for verdict in (first, second):
        if isinstance(verdict, Failure):
            return Score(None, {"failure": verdict.message})
    votes = [*_VOTES[str(first)], *(1 - vote for vote in _VOTES[str(second)])]
    return Score(fmean(votes), {"votes": votes})


def length_controlled(
    comparisons: Sequence[Comparison], confidence: float
) -> tuple[float, float, float]:
    """The share of wins where both answers were as long as each other, and its interval.

    Logistic regression of the preferences on tanh of the standardised difference of lengths, on
    how hard the instruction is, and on the model (Dubois et al. 2024, arXiv 2404.04475), at a
    difference of 0. The baseline's gamed answers, which share the coefficients but the model's,
    hold that of the length where it would be for the baseline; a model whose answers are all
    shorter says nothing of it. Instead of their L1 penalty, whose weight cross-validation chooses,
    a small ridge keeps the coefficients finite.
    """
    longer = np.array([one.longer for one in comparisons], float)
    spread = longer.std(ddof=1) if len(longer) > 1 else 0.0
    hard = np.array([one.difficulty for one in comparisons], float)
    gamed = [(i, *pair) for i, one in enumerate(comparisons) for pair in one.gamed]
    of, liked, shorter = np.array(gamed, float).reshape(-1, 3).T
    of = of.astype(int)
    own = np.tanh(longer / spread) if spread else np.zeros_like(longer)
    x = np.stack(
        [
            np.append(own, np.tanh(-shorter)),
            np.append(hard, hard[of]),
            np.append(np.ones_like(own), np.zeros_like(shorter)),
        ],
        axis=1,
    )
    y = np.append(np.array([one.won for one in comparisons], float), liked)
    owner = np.append(np.arange(len(own)), of)
    weight = np.append(np.ones_like(own), np.full(len(of), _GAMED))
    center, ridge = np.zeros(3), np.full(3, _RIDGE)
    if not gamed:
        center[0], ridge[0] = _LENGTH, _HELD
    alike = np.stack([np.zeros_like(own), hard, np.ones_like(own)], axis=1)

    def share(counts: Array) -> float:
        """With each comparison there as often as that."""
        beta = _logistic(x, y, weight * counts[owner], center, ridge)
        return float(np.average(1 / (1 + np.exp(-alike @ beta)), weights=counts))

    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), _RESAMPLES)
    found = [share(counts.astype(float)) for counts in draws]
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return share(np.ones_like(own)), float(low), float(high)


def _logistic(x: Array, y: Array, weight: Array, center: Array, ridge: Array) -> Array:
    """The coefficients, drawn to a centre by a ridge, by Newton's method."""
    beta = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-x @ beta))
        gradient = x.T @ (weight * (y - p)) - ridge * (beta - center)
        curvature = (x * (weight * p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        beta += np.clip(step, -2, 2)
        if abs(step).max() < 1e-8:
            break
    return beta
