"""References round a division as every kernel does: on CUDA PyTorch multiplies by a reciprocal."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from r1kernels.core.op import OPS
from r1kernels.core.quotient import quotient
from r1kernels.nn import fp8_rounding

DIVISIONS = (torch.ops.aten.div, torch.ops.aten.div_)


class Divisors(TorchDispatchMode):
    """Python numbers that tensors are divided by; powers of two have exact reciprocals."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_number = func.overloadpacket in DIVISIONS and not isinstance(args[1], Tensor)
        if by_number and abs(math.frexp(args[1])[0]) != 0.5:
            self.found.append(args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPS)
def test_no_reference_divides_by_a_number(name: str) -> None:
    op = OPS[name]
    small = [case.make("cpu") for case in op.cases if not case.bench]
    with torch.no_grad(), Divisors() as divisors:
        for args in small:
            op.implementations["torch"].run(*args)
    assert divisors.found == []


def test_a_division_by_a_number_is_noticed() -> None:
    with Divisors() as divisors:
        torch.ones(2) / 448.0
        torch.ones(2).div_(3)
        torch.ones(2) / 4
    assert divisors.found == [448.0, 3]


def test_scales_of_master_weights_are_not_divided_by_a_number() -> None:
    with Divisors() as divisors:
        fp8_rounding.fitted(torch.ones(2), torch.tensor([448.0, 0.3]))
    assert divisors.found == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_quotient_is_the_division_of_the_cpu(dtype: torch.dtype) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert quotient(x, 448.0).equal(x / 448.0)
    assert quotient(x, 448.0).dtype == dtype
