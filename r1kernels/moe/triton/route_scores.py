"""Scores of experts, in float64 like the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Softmax(NamedTuple):
    """Of a row, each [ROWS, 1]."""

    max: Any
    total: Any  # Σ exp(z − max)


@triton.jit
def softmax(z, there):
    max = tl.max(tl.where(there, z, float("-inf")), 1, keep_dims=True)
    return Softmax(max, tl.sum(tl.where(there, tl.exp(z - max), 0.0), 1, keep_dims=True))


@triton.jit
def log1p(x):
    """For 0 ≤ x ≤ 1. Kahan's: the rounding of 1 + x is undone, as its logarithm errs by as much."""
    sum = 1.0 + x
    return tl.where(sum == 1.0, x, tl.log(sum) * x / (sum - 1.0))


@triton.jit
def sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def score_of(z, row, SCORE: tl.constexpr):
    """Scores of logits; ``row`` is the Softmax that they are part of, if SCORE is one."""
    if SCORE == "softmax":
        s = tl.exp(z - row.max) / row.total
    elif SCORE == "sigmoid":
        s = sigmoid(z)
    else:
        s = tl.sqrt(tl.where(z > 0, z, 0.0) + log1p(tl.exp(-tl.abs(z))))
    return s
