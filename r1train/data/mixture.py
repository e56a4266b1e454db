"""How much of each source a mixture takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """`total` split by weight into whole numbers, the largest remainders rounded up."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def largest(given: Sequence[float | None], sizes: Mapping[int, int]) -> list[int]:
    """Items of each source in the largest mixture by weight (unset: 1) that `sizes` allows.

    `sizes` has the sources that are finite. Where all are and none has a weight, all is taken.
    """
    weights = [1.0 if weight is None else weight for weight in given]
    if len(sizes) == len(weights) and all(weight is None for weight in given):
        return [sizes[source] for source in range(len(weights))]
    total = min(
        int(size * sum(weights) / weights[source])
        for source, size in sizes.items()
        if weights[source]
    )
    counts = apportion(max(total, 1), weights)
    return [min(count, sizes.get(source, count)) for source, count in enumerate(counts)]
