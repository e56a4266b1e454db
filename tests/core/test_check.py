"""Errors name the op, the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from r1kernels.core import check

INT = (torch.int64,)


def bound() -> check.Shapes:
    shapes = check.Shapes("toy")
    shapes("hidden", torch.zeros(4, 8), "T H", check.FLOATS)
    return shapes


def test_shapes_accepts_what_fits_and_returns_it() -> None:
    target = torch.zeros(4, dtype=torch.int64)
    assert bound()("target", target, "T", INT) is target


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, r"toy: target: expected a tensor of shape \[T\], got list",
         lambda: bound()("target", [1, 2], "T", INT)),  # type: ignore[arg-type]
        (ValueError, r"toy: target: expected shape \[T\], got \[4, 1\]",
         lambda: bound()("target", torch.zeros(4, 1), "T", INT)),
        (ValueError, r"toy: target: expected T = 4 in shape \[T\], got \[5\]",
         lambda: bound()("target", torch.zeros(5, dtype=torch.int64), "T", INT)),
        (ValueError, r"toy: pair: expected 2 = 2 in shape \[T, 2\], got \[4, 3\]",
         lambda: bound()("pair", torch.zeros(4, 3), "T 2", check.FLOATS)),
        (TypeError, "toy: target: expected dtype int64, got float32",
         lambda: bound()("target", torch.zeros(4), "T", INT)),
        (ValueError, "toy: target: expected a tensor on cpu, got one on meta",
         lambda: bound()("target", torch.zeros(4, dtype=torch.int64, device="meta"), "T", INT)),
        (ValueError, "toy: kind: expected one of a, b; got 'c'",
         lambda: check.choice("toy", "kind", "c", ("a", "b"))),
        (ValueError, "toy: temperature: expected a number above 0, got -1.0",
         lambda: check.positive("toy", "temperature", -1.0)),
        (ValueError, "toy: temperature: expected a number above 0, got nan",
         lambda: check.positive("toy", "temperature", float("nan"))),
        (ValueError, "toy: beta: expected a finite number, got inf",
         lambda: check.number("toy", "beta", float("inf"))),
        (TypeError, r"toy: beta: expected a number, got a tensor of shape \[\] \(\.item\(\)",
         lambda: check.number("toy", "beta", torch.tensor(1.0))),
        (TypeError, "toy: beta: expected a number, got True",
         lambda: check.number("toy", "beta", True)),
        (TypeError, "toy: top_k: expected a whole number, got 2.0",
         lambda: check.count("toy", "top_k", 2.0)),
        (TypeError, "toy: entropy: expected True or False, got 1",
         lambda: check.flag("toy", "entropy", 1)),
        (ValueError, r"toy: target\[1\]: expected 0 ≤ target < 9, got 9",
         lambda: check.in_range("toy", "target", torch.tensor([0, 9]), 9)),
        (ValueError, r"toy: target\[0\]: expected 0 ≤ target < 9, got -1",
         lambda: check.in_range("toy", "target", torch.tensor([-1, -100]), 9, ignore=-100)),
        (ValueError, r"toy: rewards\[1\]: expected a finite number, got nan",
         lambda: check.finite("toy", "rewards", torch.tensor([0.0, float("nan")]))),
        (ValueError, "toy: cu_seqlens: expected to start at 0 and end at T = 5, got 0 … 4",
         lambda: check.cumulative("toy", "cu_seqlens", torch.tensor([0, 4]), 5)),
        (ValueError, "toy: cu_seqlens: expected non-decreasing offsets",
         lambda: check.cumulative("toy", "cu_seqlens", torch.tensor([0, 4, 3, 5]), 5)),
    ],
)  # fmt: skip
def test_message(error: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=message):
        call()


def test_values_in_range_pass() -> None:
    check.choice("toy", "kind", "a", ("a", "b"))
    check.positive("toy", "temperature", 0.5)
    check.number("toy", "beta", np.float32(0.5))
    check.number("toy", "delta", float("inf"), infinite=True)
    check.count("toy", "top_k", np.int64(3))
    check.in_range("toy", "target", torch.tensor([0, 8, -100]), 9, ignore=-100)
    check.in_range("toy", "target", torch.zeros(0, dtype=torch.int64), 9)
    check.finite("toy", "rewards", torch.ones(3))
    check.cumulative("toy", "cu_seqlens", torch.tensor([0, 0, 5]), 5)


@pytest.mark.parametrize("kind", [ValueError, TypeError])
def test_errors_bear_the_name_of_who_was_called(kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^outer: x: expected a number$"), check.on_behalf_of("outer"):
        raise kind("inner: x: expected a number")


def test_errors_of_others_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match=r"^no op at all: but words$"), check.on_behalf_of("outer"):
        raise ValueError("no op at all: but words")
    with pytest.raises(UnicodeError, match=r"^inner: x$"), check.on_behalf_of("outer"):
        raise UnicodeError("inner: x")
