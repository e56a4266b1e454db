"""Timing in rounds, each of other data: shapes that never change hide plans and caches that no real
run meets twice. Candidates take turns in a round, and are compared within it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from r1kernels.testing.timing import PATIENCE, Call, seconds_of

Round = Mapping[str, float]  # seconds a token, of each candidate


class Quartiles(NamedTuple):
    low: float
    middle: float
    high: float


def timed(
    candidates: Mapping[str, Callable[[int], Call]],
    tokens: Callable[[int], int],
    *,
    device: str,
    rounds: tuple[int, int],
    seconds: float,
    warmup: int = 1,
) -> list[Round]:
    """Run the candidates A B C, C B A, A B C …, and give the rounds but the first, ``warmup`` ones.

    Args:
        candidates: what gives the call of a round, ready to run: only the call is timed. Round 0
            is the first.
        tokens: of a round.
        rounds: the fewest and the most that are timed. What once takes ``PATIENCE`` seconds is left
            out of the later ones.
        seconds: after the fewest rounds, it is over when a candidate has run so long on average.
    """
    found: list[Round] = []
    spent, running = 0.0, list(candidates)
    fewest, most = rounds
    for number in range(warmup + most):
        if number >= warmup + fewest and spent >= seconds * len(candidates):
            break
        took = {
            name: seconds_of(candidates[name](number), device)
            for name in running[:: 1 if number % 2 == 0 else -1]
        }
        if number >= warmup:
            running = [name for name in running if took[name] < PATIENCE]
            spent += sum(took.values())
            found.append({name: time / tokens(number) for name, time in took.items()})
    return found


def pace(rounds: Sequence[Round], name: str) -> float:
    """Median seconds a token."""
    return median(each[name] for each in rounds if name in each)


def fastest(rounds: Sequence[Round], names: Sequence[str]) -> str | None:
    there = [name for name in names if any(name in each for each in rounds)]
    return min(there, key=lambda name: pace(rounds, name), default=None)


def ratios(rounds: Sequence[Round], name: str, other: str) -> Quartiles:
    """Of the time of one over that of the other in the same round."""
    found = sorted(each[name] / each[other] for each in rounds if {name, other} <= each.keys())
    return Quartiles(*(found[round(share * (len(found) - 1))] for share in (0.25, 0.5, 0.75)))


def verdict(rounds: Sequence[Round], name: str, other: str) -> str:
    """Who wins: a sentence, which is sure where three quarters of the rounds agree."""
    low, middle, high = ratios(rounds, name, other)
    outcome = "wins" if high < 1 else "loses" if low > 1 else "neither wins nor loses"
    return (
        f"{name} {outcome} against {other}: {middle:.2f} of its time ({low:.2f} to {high:.2f}), "
        f"{1 / middle:.2f} × its tokens a second."
    )
