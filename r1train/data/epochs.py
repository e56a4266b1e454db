"""Which items a step draws: a function of the seed and the step, so that nothing is kept."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeVar

from r1train.seeds import derive_seed

T = TypeVar("T")


def draw(items: Sequence[T], count: int, step: int, seed: int) -> list[T]:
    """The items of a step, counted from 1: epoch after epoch, each in an order of its own."""
    return [items[place] for place in _places(len(items), count, step, seed)]


def others(items: Sequence[T], count: int, step: int, seed: int) -> Iterator[T]:
    """Items beside those that `draw` gives, at random and each once; when all have been drawn,
    all of them again."""
    rng = random.Random(derive_seed(seed, "others", step))
    drawn = {*_places(len(items), count, step, seed)}
    while True:
        if len(drawn) == len(items):
            drawn.clear()
        place = rng.randrange(len(items))
        if place not in drawn:
            drawn.add(place)
            yield items[place]


def _places(size: int, count: int, step: int, seed: int) -> list[int]:
    first = (step - 1) * count
    return [
        _order(size, epoch, seed)[place]
        for epoch, place in (divmod(i, size) for i in range(first, first + count))
    ]


@lru_cache(maxsize=2)
def _order(size: int, epoch: int, seed: int) -> array[int]:
    return array("q", random.Random(derive_seed(seed, "order", epoch)).sample(range(size), size))
