"""The measuring instruments themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from r1kernels.core.op import OPS, Case
from r1kernels.testing import timing
from r1kernels.testing.compare import Truth, bitwise_problems, upcast
from r1kernels.testing.memory import extra_peak
from r1kernels.testing.poison import poisoned
from r1kernels.testing.timing import interleaved

NAN = float("nan")
MIB = 1 << 20


@pytest.mark.parametrize(
    ("got", "expected", "problem"),
    [
        (torch.tensor([1.0, NAN]), torch.tensor([1.0, -NAN]), None),
        (torch.tensor([0.0]), torch.tensor([-0.0]), "1 of 1 elements differ, the first at [0]"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "the first at [1]: expected 3, got 2"),
        (torch.tensor([1]), torch.tensor([1], dtype=torch.int32), "dtype: expected torch.int32"),
        (torch.ones(2, 2).T, torch.ones(2, 2), "strides: expected (2, 1), got (1, 2)"),
        (torch.ones(3, 1).T, torch.ones(1, 3), None),  # a stride of one element means nothing
        (torch.ones(2), torch.ones(3), "shape: expected (3,), got (2,)"),
        (torch.ones(0, 4), torch.ones(4, 0).T, None),
    ],
)
def test_bitwise(got: Tensor, expected: Tensor, problem: str | None) -> None:
    problems = bitwise_problems(got, expected)
    assert (problem is None and problems == []) or problem in problems[0]


@pytest.mark.parametrize(("got", "right"), [(0.0, True), (8e-8, True), (1e-4, False), (NAN, False)])
def test_zero_allows_the_rounding_of_what_it_was_made_of(got: float, right: bool) -> None:
    op, case = OPS["logprob"], Case("one column", lambda device: ())
    args = (torch.tensor([[3.7]]), torch.tensor([0]), None, 1.0, None, False)
    _, entropy, lse = op(*args)
    problems = Truth(op, case, args).check("other", (torch.tensor([got]), entropy, lse)).problems
    assert (not problems) == right


def test_upcast_touches_floating_point_tensors_only() -> None:
    index = torch.tensor([1])
    half, same, none, number = upcast((torch.ones(2).bfloat16(), index, None, 0.5))
    assert half.dtype == torch.float64
    assert same is index
    assert (none, number) == (None, 0.5)


def test_poison_fills_every_kind_of_empty_and_then_stops() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.ones(3).bfloat16().new_empty(2).isnan().all()
        assert torch.empty_like(torch.ones(2, dtype=torch.float64)).isnan().all()
        assert (torch.empty(2, dtype=torch.uint8) == 255).all()
    assert not torch.are_deterministic_algorithms_enabled()


def scratch_and_result(scratch: int, result: int) -> Callable[[], Tensor]:
    def call() -> Tensor:
        torch.ones(scratch * MIB, dtype=torch.uint8)
        return torch.ones(result * MIB, dtype=torch.uint8)

    return call


def test_peak_memory_counts_scratch_and_results() -> None:
    memory = extra_peak(scratch_and_result, 24, 8)
    assert memory.returned == 8 * MIB
    assert memory.peak == pytest.approx(24 * MIB, abs=MIB)
    assert memory.scratch == pytest.approx(16 * MIB, abs=MIB)


def test_candidates_are_timed_in_turn() -> None:
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    medians = interleaved(calls, seconds=0.0, rounds=(3, 3), warmup=1)
    assert order == ["a", "b", *"abbaab"]
    assert all(seconds >= 0 for seconds in medians.values())


def test_what_takes_very_long_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"quick": iter([1.0, 2.0, 3.0]), "slow": iter([20.0])}
    calls = {name: partial(next, each) for name, each in times.items()}
    monkeypatch.setattr(timing, "_cpu_seconds", lambda call: call())
    assert interleaved(calls, rounds=(3, 3), warmup=0) == {"quick": 2.0, "slow": 20.0}
