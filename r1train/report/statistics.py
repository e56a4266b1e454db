"""What samples say of a model: pass@k, intervals over questions, and whether two models differ.

A figure of a benchmark is a mean over its questions, each of which was asked k times. Questions are
what was drawn from all that might be asked, so every interval and test here resamples questions,
never single completions: those of one question agree with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from r1train.report.evaluation import Interval, interval

RESAMPLES = 10_000
_EXACT = 12
"""Questions up to which every sign is tried: 4,096 ways."""
_BLOCK = 1 << 22
"""Numbers drawn at a time."""


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that one of k completions, drawn without return from n of which `correct` are
    right, is right: 1 − C(n − c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).

    It is unbiased for every k ≤ n, where 1 − (1 − c/n)^k is not. The quotient is a product of k
    factors in [0, 1], so that no binomial overflows.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(
            f"pass_at_k: n = {n}, correct = {correct}, k = {k}: expected 1 ≤ k ≤ n and "
            "0 ≤ correct ≤ n"
        )
    wrong = n - correct
    if wrong < k:
        return 1.0
    return 1.0 - prod((wrong - i) / (n - i) for i in range(k))


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Percentile bootstrap of the mean of one value for each question."""
    if not values or not np.isfinite(values).all():
        raise ValueError(
            f"bootstrap_interval: values = {values}: expected a finite number for each question"
        )
    means = _resampled_means(np.asarray(values, float), seed, resamples)
    return _percentiles(means, confidence)


def share_interval(
    scores: Sequence[float], confidence: float = 0.95, k: int = 1, *, seed: int = 0
) -> Interval:
    """The same for scores in [0, 1], each a mean of k.

    Where all are the same, as all right, resampling shows nothing but what was seen, however few
    they are: there the interval is Wilson's.
    """
    if len(set(scores)) == 1:
        return interval(scores, confidence, k)
    return bootstrap_interval(scores, confidence, seed=seed)


@dataclass(frozen=True)
class Paired:
    """Two models on the same questions."""

    difference: float
    """Mean of the first's values less the second's."""
    low: float
    high: float
    """Percentile bootstrap of it, over questions."""
    p_value: float
    """Of a permutation test: how often a difference as large comes about where each question's two
    values may as well be exchanged. Two-sided."""
    questions: int


def paired_test(
    left: Sequence[float],
    right: Sequence[float],
    confidence: float = 0.95,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Paired:
    """Whether two models differ, by their values on each question.

    The test is exact up to 12 questions. Beyond, signs are drawn, and what was observed counts as
    one of the draws (Phipson and Smyth 2010), so that p is never 0.
    """
    if len(left) != len(right) or not left:
        raise ValueError(
            f"paired_test: {len(left)} and {len(right)} values: expected as many of the one as of "
            "the other, and some"
        )
    apart = np.asarray(left, float) - np.asarray(right, float)
    if not np.isfinite(apart).all():
        raise ValueError("paired_test: a value is NaN or infinite: leave such questions out")
    low, high = _percentiles(_resampled_means(apart, seed, resamples), confidence)
    observed = abs(apart.mean()) - 1e-12  # sums in another order
    if len(apart) <= _EXACT:
        ways = np.arange(2 ** len(apart))[:, None] >> np.arange(len(apart)) & 1
        p = float((abs((1 - 2 * ways) @ apart / len(apart)) >= observed).mean())
    else:
        rng, extreme = np.random.default_rng([seed, 1]), 1
        for count in _blocks(resamples, len(apart)):
            signs = 1 - 2 * rng.integers(0, 2, (count, len(apart)), np.int8)
            extreme += int((abs(signs @ apart / len(apart)) >= observed).sum())
        p = extreme / (resamples + 1)
    return Paired(fmean(apart), low, high, p, len(apart))


def _resampled_means(values: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    rng, n = np.random.default_rng(seed), len(values)
    return np.concatenate(
        [
            values[rng.integers(0, n, (count, n), np.int32)].mean(axis=1)
            for count in _blocks(resamples, n)
        ]
    )


def _blocks(resamples: int, questions: int) -> list[int]:
    """Resamples at a time, so that few lie in memory."""
    size = max(1, _BLOCK // questions)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _percentiles(means: NDArray[np.float64], confidence: float) -> Interval:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
