"""No call waits for the device: nothing on its way asks for a value, or for how many there are.

The kernels are left out, and so are checks of values, which a GPU makes within ``checked()`` alone;
what else a call does in PyTorch is watched. What kernels of csrc/cuda do themselves is seen where
they are captured in graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import r1kernels
from r1kernels.core import check
from r1kernels.core.op import OPS, Op
from tests.core.test_argument_errors import calls

interpreter = pytest.importorskip("triton.runtime.interpreter")

# Their results are as large as the values say.
SIZED_BY_VALUES = {"pack", "candidates"}

ASKING = (
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "unique", "masked_select", "bincount",
    "equal", "histc",
)  # fmt: skip


class Asked(AssertionError):
    pass


class NothingAsked(TorchDispatchMode):
    """Raises where a value is asked for; sees what happens within the ops too."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name
        if name.startswith("r1kernels::"):
            with self:
                return OPS[name.removeprefix("r1kernels::")]._run(*args)
        short = name.removeprefix("aten::").removeprefix("_")
        kwargs = kwargs or {}
        by_tensor = short == "repeat_interleave" and "Tensor" in function._overloadname
        if by_tensor and kwargs.get("output_size") is None:
            raise Asked(f"{name} without output_size")
        if any(short.startswith(asking.removeprefix("_")) for asking in ASKING):
            raise Asked(name)
        if "index" in short and any(is_mask(arg) for arg in tree_leaves(args[1:])):
            raise Asked(f"{name} with a mask")
        found = function(*args, **kwargs)
        return found.zero_() if "empty" in short else found  # what no kernel writes to here


def is_mask(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.dtype in (torch.bool, torch.uint8)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for op in OPS.values():
        monkeypatch.setattr(op, "_validate", None)
    monkeypatch.setattr(check, "may_look", lambda tensor: False)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *args, **kwargs: None)
    with r1kernels.using("torch"), r1kernels.using("triton"):
        yield


@pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)
def test_an_op_asks_for_no_value(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case for case in op.cases if not case.bench]
    given = [case.make("cpu") for case in cases]
    forbid_lists(monkeypatch)
    for case, args in zip(cases, given, strict=True):
        with NothingAsked():
            try:
                op(*args)
            except Asked as asked:
                pytest.fail(f"{op.name}, {case.name}: {asked}")


@pytest.mark.parametrize("name", sorted(set(calls()) - SIZED_BY_VALUES))
def test_a_function_asks_for_no_value_in_either_pass(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {
        key: value.requires_grad_() if trainable(key, value) else value
        for key, value in calls()[name].items()
    }
    forbid_lists(monkeypatch)
    with NothingAsked():
        found = tree_leaves(getattr(r1kernels, name.split()[0])(**arguments))
        sums = [out.float().sum() for out in found if isinstance(out, Tensor) and out.requires_grad]
        if sums:
            with suppress(NotImplementedError):  # it has no gradient
                torch.stack(sums).sum().backward()


def trainable(key: str, value: Any) -> bool:
    if "accumulate" in key or key.startswith("teacher") or not isinstance(value, Tensor):
        return False
    return value.is_floating_point() and value.itemsize > 1


def forbid_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    def tolist(self: Tensor) -> Any:
        raise Asked("Tensor.tolist")

    monkeypatch.setattr(Tensor, "tolist", tolist)
