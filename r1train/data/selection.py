"""Parts of large sequences, in an order of their own, that copy none of the items."""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

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


def as_they_lie(items: Sequence[Any]) -> NDArray[np.int64]:
    """The positions of all items, ordered by where they lie beneath the selections: so a shuffled
    file is gone through from its beginning to its end, and no part of it is read twice."""
    return np.argsort(_depths(items), kind="stable")


def _depths(items: Sequence[Any]) -> NDArray[np.int64]:
    """Of each item a number that is larger the further back it lies."""
    if isinstance(items, Selection):
        numbers, base = np.frombuffer(items.numbers, np.int64), items.base
        return _depths(base)[numbers] if isinstance(base, Selection | Joined) else numbers
    if isinstance(items, Joined):
        found, start = [np.empty(0, np.int64)], 0
        for part in map(_depths, items.parts):
            found.append(part + start)
            start += int(part.max(initial=-1)) + 1
        return np.concatenate(found)
    return np.arange(len(items))
