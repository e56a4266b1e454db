"""PyTorch's FP8 product as a backend: what it takes on the CPU, and why not the rest."""

from __future__ import annotations

import pytest
import torch

import r1kernels
from r1kernels.core.op import Case
from r1kernels.fp8.gemm import CASES, FP8_GEMM
from r1kernels.testing.compare import Truth

BY_NAME = {case.name: case for case in CASES}
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these are the CPU's limits")


@pytest.mark.parametrize("name", ["per tensor", "per tensor, dgrad"])
def test_it_multiplies_tensors_of_one_scale_when_pinned(name: str) -> None:
    case = BY_NAME[name]
    args = case.make("cpu")
    with r1kernels.using("scaled_mm", FP8_GEMM):
        assert r1kernels.explain(FP8_GEMM, *args) == "fp8_gemm: scaled_mm (pinned)"
        out = FP8_GEMM(*args)
    assert not Truth(FP8_GEMM, case, args).check("scaled_mm", out).problems


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("forward", "takes one scale for each tensor on cpu"),
        ("row-wise", "takes one scale for each tensor on cpu"),
        ("squares, both", "no recipe for scales of BlockWise128x128 and BlockWise128x128"),
        ("no rows", "takes no empty tensors"),
    ],
)
def test_pinned_where_it_cannot_run_it_says_why(name: str, reason: str) -> None:
    case: Case = BY_NAME[name]
    with r1kernels.using("scaled_mm", FP8_GEMM), pytest.raises(RuntimeError, match=reason):
        FP8_GEMM(*case.make("cpu"))


def test_it_is_never_preferred() -> None:
    args = BY_NAME["per tensor"].make("cpu")
    assert FP8_GEMM.select(*args).implementation != "scaled_mm"
