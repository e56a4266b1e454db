"""Timing in rounds of other data, and who wins."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import rounds


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What has run, in order; a call says how long it took."""
    calls: list[tuple[str, int]] = []

    def seconds_of(call: Any, device: str) -> float:
        name, number, seconds = call()
        calls.append((name, number))
        return seconds

    monkeypatch.setattr(rounds, "seconds_of", seconds_of)
    return calls


def candidate(name: str, *seconds: float) -> Any:
    return lambda number: lambda: (name, number, seconds[min(number, len(seconds) - 1)])


def test_candidates_take_turns_with_the_data_of_a_round(ran: list[tuple[str, int]]) -> None:
    found = rounds.timed(
        {"a": candidate("a", 9.0, 2.0, 4.0), "b": candidate("b", 9.0, 1.0)},
        lambda number: number + 1,
        device="cpu",
        rounds=(2, 5),
        seconds=0.0,
    )
    assert ran == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert found == [{"a": 1.0, "b": 0.5}, {"a": 4 / 3, "b": 1 / 3}]


def test_rounds_go_on_while_there_is_time(ran: list[tuple[str, int]]) -> None:
    found = rounds.timed(
        {"a": candidate("a", 1.0), "b": candidate("b", 3.0)},
        lambda number: 1,
        device="cpu",
        rounds=(1, 9),
        seconds=7.0,  # 14 for both, which take 4 a round
    )
    assert len(found) == 4


def test_what_takes_too_long_is_left_out_of_later_rounds(ran: list[tuple[str, int]]) -> None:
    found = rounds.timed(
        {"a": candidate("a", 1.0), "slow": candidate("slow", 99.0)},
        lambda number: 1,
        device="cpu",
        rounds=(3, 3),
        seconds=0.0,
    )
    assert [sorted(each) for each in found] == [["a", "slow"], ["a"], ["a"]]
    assert rounds.fastest(found, ["slow", "a"]) == "a"
    assert rounds.fastest(found, ["absent"]) is None
    assert rounds.ratios(found, "a", "slow").middle == pytest.approx(1 / 99)


@pytest.mark.parametrize(
    ("times", "outcome"),
    [
        ([1.0, 1.0, 1.9, 1.0, 9.0], "wins"),
        ([1.0, 3.0, 2.5, 1.9, 2.5], "neither wins nor loses"),
        ([3.0, 3.0, 1.0, 3.0, 3.0], "loses"),
    ],
)
def test_who_wins_is_ahead_in_three_quarters_of_the_rounds(
    times: list[float], outcome: str
) -> None:
    found = [{"we": time, "they": 2.0} for time in times]
    assert rounds.verdict(found, "we", "they").startswith(f"we {outcome} against they: ")
