"""What a call costs the host, as a count of the functions that run on its way: the same every time.

A function of Python or C takes 0.05 to 0.1 µs, an allocation or a view 1 to 2. Left out are the
kernels, and launches (test_triton_handles.py). Where a limit is in the way of something that is
needed, raise it and say why.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import Tensor

import r1kernels
from r1kernels.core import check
from r1kernels.core.op import OPS
from tests.core.test_argument_errors import calls

interpreter = pytest.importorskip("triton.runtime.interpreter")

MOST, MOST_TRACKED = 160, 220
SEVERAL_OPS = {
    "fp8_experts": (680, 790),  # its products, and what stands between them, are ops
    "fused_linear_grpo_loss": (350, 520),  # the head, then policy_loss
    "gdpo_advantage": (170, 170),  # one group_advantage a reward, and one of their sum
    "moe_experts biases": (480, 660),  # an activation of one's own keeps its steps apart
    "policy_loss": (130, 240),  # a metric after the other
}


def counted(function: Callable[[], Any]) -> int:
    """How many functions run in a call, Python's and C's."""
    found = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    function()  # the first one imports, and remembers
    function()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's backends that launch nothing, and no checks of values: as on a GPU."""
    for op in OPS.values():
        monkeypatch.setattr(op, "_validate", None)
    monkeypatch.setattr(check, "may_look", lambda tensor: False)
    monkeypatch.setattr(interpreter.InterpretedFunction, "run", lambda *args, **kwargs: None)
    with r1kernels.using("torch"), r1kernels.using("triton"):
        yield


# What it takes of PyTorch indexes by the results of a kernel, which does not run here.
INDEXED = {"moe_balance_loss"}


@pytest.mark.parametrize("tracked", [False, True], ids=["no gradient", "tracked"])
@pytest.mark.parametrize("name", sorted(set(calls()) - INDEXED))
def test_a_call_takes_few_functions(name: str, tracked: bool, without_kernels: None) -> None:
    arguments = {
        key: value.requires_grad_() if tracked and trainable(key, value) else value
        for key, value in calls()[name].items()
    }
    function = getattr(r1kernels, name.split()[0])
    found = counted(lambda: function(**arguments))
    limits = SEVERAL_OPS.get(name, SEVERAL_OPS.get(name.split()[0], (MOST, MOST_TRACKED)))
    assert found <= limits[tracked]


def trainable(name: str, value: Any) -> bool:
    if name == "accumulate" or name.startswith("teacher") or not isinstance(value, Tensor):
        return False
    return value.is_floating_point() and value.itemsize > 1
