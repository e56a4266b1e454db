"""The products of FP8 tensors in CUDA C++: on an H100, and without one, on tests/cuda_emulator."""

from __future__ import annotations

import pytest
import torch

from r1kernels.op import OPS, Case, Op
from r1kernels.ops import fp8_gemm
from r1kernels.testing.compare import Truth, as_tuple, bitwise_problems
from r1kernels.testing.poison import poisoned
from tests.emulated_cuda import Kernels

CASES = [
    pytest.param(OPS[name], case, id=f"{name}-{case.name}")
    for name in ("fp8_gemm",)
    for case in OPS[name].cases
    if not case.bench
]
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = pytest.mark.parametrize("kernels", ["gpu" if HOPPER else "sm_90"], indirect=True)


@pytest.mark.parametrize(("op", "case"), CASES)
def test_equals_the_reference(kernels: Kernels, op: Op, case: Case) -> None:
    args = case.make(kernels.device)
    with poisoned():
        outputs = as_tuple(getattr(kernels.ops, op.name)(*args))
    assert not Truth(op, case, args).check("cuda", outputs).problems
