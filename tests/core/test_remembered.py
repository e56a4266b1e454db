"""Checks that are remembered: asked once for what is alike, and never when something differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from r1kernels.core import remembered

X = torch.zeros(3, 4)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    """A remembered check, and the arguments with which it ran."""
    monkeypatch.setattr(remembered, "MOST", 2)
    calls: list[Any] = []

    @remembered.remembered
    def check(*args: Any, **options: Any) -> int:
        calls.append((args, options))
        if args[0] is None:
            raise ValueError("expected something")
        return len(calls)

    return check, calls


def test_what_is_alike_is_asked_once(asked: Any) -> None:
    check, calls = asked
    assert [check(X, 2.0, size=3), check(torch.ones(3, 4), 2.0, size=3)] == [1, 1]
    assert len(calls) == 1


OTHER: dict[str, tuple[Any, ...]] = {
    "shape": (torch.zeros(4, 3), 1),
    "dtype": (X.double(), 1),
    "device": (X.to("meta"), 1),
    "layout": (X.to_sparse(), 1),
    "subclass of a tensor": (torch.nn.Parameter(X), 1),
    "value": (X, 2),
    "float": (X, 1.0),
    "bool": (X, True),
    "None": (X, None),
    "one more": (X, 1, None),
}


@pytest.mark.parametrize("other", OTHER.values(), ids=OTHER)
def test_whatever_differs_is_asked(other: tuple[Any, ...], asked: Any) -> None:
    check, calls = asked
    check(X, 1)
    check(*other)
    assert len(calls) == 2


def test_names_of_options_count(asked: Any) -> None:
    check, calls = asked
    check(X, epsilon=1)
    check(X, delta=1)
    assert len(calls) == 2


@pytest.mark.parametrize("strange", [[1], {"a": 1}, object()], ids=["list", "dict", "object"])
def test_what_may_change_is_asked_every_time(strange: Any, asked: Any) -> None:
    check, calls = asked
    check(X, strange)
    check(X, strange)
    assert len(calls) == 2


def test_an_error_is_raised_every_time(asked: Any) -> None:
    check, calls = asked
    for _ in range(2):
        with pytest.raises(ValueError, match="expected something"):
            check(None)
    assert len(calls) == 2


def test_not_more_than_so_many_are_remembered(asked: Any) -> None:
    check, calls = asked
    for size in (1, 2, 3, 3, 1):
        check(X, size)
    assert [args[1] for args, _ in calls] == [1, 2, 3, 1]
