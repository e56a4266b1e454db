"""One answer of many solutions, by what a model says that they are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Aggregate = Literal["min", "prod", "last"]


def aggregate(values: Sequence[float], how: Aggregate) -> float:
    """The score of a solution whose steps have these values."""
    if how == "min":
        return min(values)
    return math.prod(values) if how == "prod" else values[-1]


def best(scores: Sequence[float]) -> int:
    """The number of the largest score; the first of equals."""
    return max(range(len(scores)), key=scores.__getitem__)


def pair_accuracy(scores: Sequence[float], right: Sequence[float]) -> tuple[float, int]:
    """How many pairs of a right and a wrong solution have the right one above, a tie counting half,
    and how many pairs there are."""
    above = [score for score, one in zip(scores, right, strict=True) if one]
    below = [score for score, one in zip(scores, right, strict=True) if not one]
    ordered = sum((a > b) + (a == b) / 2 for a in above for b in below)
    return ordered, len(above) * len(below)
