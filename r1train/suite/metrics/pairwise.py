"""Preference over a baseline's answers by a judge: AlpacaEval 2 and ArenaHard.

Each pair is judged in both orders. As in R1's report the judge sees summaries alone, so that long
chains of thought neither gain nor lose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from r1train.config.sections import Config
from r1train.rewards.judge.client import ChatClient, Failure
from r1train.rewards.judge.verdicts import compare
from r1train.suite.metrics.base import MetricBase, Response, Score
from r1train.suite.specs import Benchmark

_STEPS, _RIDGE, _RESAMPLES = 25, 1e-3, 400
Array = NDArray[np.float64]


class PairwiseMetric(MetricBase):
    """How far a response is preferred: 1, 0, or between for a tie and where the orders differ."""

    def __init__(self, benchmark: Benchmark, config: Config) -> None:
        super().__init__(benchmark, config)
        self.client = ChatClient(config.suite.judge)

    def __call__(self, responses: Sequence[Response]) -> list[Score]:
        triples = [(one.question.text, one.summary, str(one.question.reference))
                   for one in responses]  # fmt: skip
        return [
            Score(None, {"failure": share.message}) if isinstance(share, Failure) else Score(share)
            for share in compare(self.client, triples)
        ]

    def figures(self, responses: Sequence[Response], scores: Sequence[Score]) -> dict[str, float]:
        judged = [pair for pair in zip(responses, scores, strict=True) if pair[1].value is not None]
        longer = [len(one.summary) - len(str(one.question.reference)) for one, _ in judged]
        won = [score.value for _, score in judged if score.value is not None]
        mean, low, high = length_controlled(won, longer, self.config.suite.confidence)
        return {"lc_winrate": mean, "lc_winrate_low": low, "lc_winrate_high": high}


def length_controlled(
    won: Sequence[float], longer: Sequence[float], confidence: float
) -> tuple[float, float, float]:
    """The share of wins where both answers were as long as each other, and its interval.

    Logistic regression of the preferences on tanh of the standardised difference of lengths
    (Dubois et al. 2024, arXiv 2404.04475), at a difference of 0. Theirs has a term for how hard
    each instruction is, which they fitted to many models; one model says nothing of that.
    """
    y, length = np.asarray(won, float), np.asarray(longer, float)
    spread = length.std()
    x = np.stack([np.ones_like(y), np.tanh(length / spread) if spread else np.zeros_like(y)], 1)
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(y), (_RESAMPLES, len(y)))
    found = [_at_zero(x[rows], y[rows]) for rows in draws]
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return _at_zero(x, y), float(low), float(high)


def _at_zero(x: Array, y: Array) -> float:
    """Newton's method. A little ridge keeps it finite where every comparison was won."""
    beta = np.zeros(2)
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-x @ beta))
        gradient = x.T @ (y - p) - _RIDGE * beta
        curvature = (x * (p * (1 - p))[:, None]).T @ x + _RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        beta += np.clip(step, -2, 2)
        if abs(step).max() < 1e-8:
            break
    return float(1 / (1 + np.exp(-beta[0])))
