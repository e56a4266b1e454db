"""Parts of large sequences, in an order of their own, that copy none of the items."""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol, TypeVar, overload

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Numbered(Protocol[T_co]):
    """What gives an item for its number."""

    def __getitem__(self, number: int, /) -> T_co: ...


class Selection(Sequence[T]):
    """The items of `base` that `numbers` name, in that order; each is asked for when it is used."""

    def __init__(self, base: Numbered[T], numbers: array[int]) -> None:
        self.base, self.numbers = base, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Selection[T]: ...
    def __getitem__(self, index: int | slice) -> T | Selection[T]:
        if isinstance(index, slice):
            return Selection(self.base, self.numbers[index])
        return self.base[self.numbers[index]]


class Joined(Sequence[T]):
    """Sequences one after the other."""

    def __init__(self, parts: Sequence[Sequence[T]]) -> None:
        self.parts = parts
        self.firsts = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getitem__(self, index: int) -> T:  # type: ignore[override]  # no slices
        which = bisect_right(self.firsts, index) - 1
        return self.parts[which][index - self.firsts[which]]


def shuffled(items: Sequence[T], rng: random.Random) -> Selection[T]:
    """All items in a random order."""
    order = array("q", range(len(items)))
    rng.shuffle(order)
    return Selection(items, order)
