"""How much two texts have in common: near-duplicates among completions of one prompt."""

from __future__ import annotations

from collections.abc import Sequence

RUN = 5  # tokens


def shingles(ids: Sequence[int]) -> frozenset[tuple[int, ...]]:
    """All runs of `RUN` tokens; of a shorter text, the text itself."""
    count = max(1, len(ids) - RUN + 1)
    return frozenset(tuple(ids[start : start + RUN]) for start in range(count))


def jaccard(one: frozenset[tuple[int, ...]], other: frozenset[tuple[int, ...]]) -> float:
    """Share of the runs of either that both have (Broder 1997): 1 where they are the same."""
    common = len(one & other)
    return common / (len(one) + len(other) - common)
