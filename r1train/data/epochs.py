"""Which items a step draws: a function of the seed and the step, so that nothing is kept."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

from r1train.seeds import derive_seed

T = TypeVar("T")


def draw(items: Sequence[T], count: int, step: int, seed: int) -> list[T]:
    """The items of a step, counted from 1: epoch after epoch, each in an order of its own."""
    first = (step - 1) * count
    return [
        items[_order(len(items), epoch, seed)[place]]
        for epoch, place in (divmod(i, len(items)) for i in range(first, first + count))
    ]


@lru_cache(maxsize=2)
def _order(size: int, epoch: int, seed: int) -> array[int]:
    return array("q", random.Random(derive_seed(seed, "order", epoch)).sample(range(size), size))
