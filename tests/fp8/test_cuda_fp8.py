"""The products of FP8 tensors in CUDA C++: on an H100, and without one, on tests/cuda_emulator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from r1kernels.core.op import OPS, Case, Op
from r1kernels.fp8 import gemm
from r1kernels.testing.compare import Truth, as_tuple, bitwise_problems
from r1kernels.testing.poison import poisoned
from tests.emulated_cuda import Kernels

CASES = [
    pytest.param(OPS[name], case, id=f"{name}-{case.name}")
    for name in ("fp8_gemm", "fp8_grouped_gemm", "fp8_grouped_wgrad")
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


def operands(kernels: Kernels, m: int, n: int, k: int, of_b: tuple[int, int]) -> list[Tensor]:
    """a, its scale by rows of 128, b [n, k] and its scale."""
    rng = torch.Generator().manual_seed(m + n + k)
    a = gemm.quantized(torch.randn(m, k, generator=rng), gemm.ROWS)
    b = gemm.quantized(torch.randn(n, k, generator=rng), of_b)
    return [t.to(kernels.device) for t in (*a, *b)]


@pytest.mark.parametrize("of_b", [gemm.ROWS, gemm.SQUARES], ids=["rows", "squares"])
def test_a_row_does_not_depend_on_its_batch(kernels: Kernels, of_b: tuple[int, int]) -> None:
    a, a_scale, *b = operands(kernels, 600, 140, 256, of_b)  # tiles of 256 rows, several turns
    everything = kernels.ops.fp8_gemm(a, a_scale, *b, None, torch.float32, False)
    for rows in (slice(0, 1), slice(255, 258), slice(590, 600)):
        alone = kernels.ops.fp8_gemm(a[rows], a_scale[rows], *b, None, torch.float32, False)
        assert not bitwise_problems(alone, everything[rows])


def test_more_reduction_than_the_ring_holds(kernels: Kernels) -> None:
    case = gemm._case("long", 130, 100, 128 * 15 + 16, torch.float32)
    args = case.make(kernels.device)
    outputs = as_tuple(kernels.ops.fp8_gemm(*args))
    assert not Truth(OPS["fp8_gemm"], case, args).check("cuda", outputs).problems


@pytest.mark.parametrize("columns", [140, 141])
def test_a_product_is_added_in_place(kernels: Kernels, columns: int) -> None:
    given = operands(kernels, 70, columns, 256, gemm.ROWS)
    product = kernels.ops.fp8_gemm(*given, None, torch.float32, False)
    before = torch.randn(70, columns, generator=torch.Generator().manual_seed(0)).to(kernels.device)
    for there in (before.clone(), before.T.contiguous().T):  # the latter is not contiguous
        kernels.ops.fp8_gemm_(there, *given, False)
        assert not bitwise_problems(there.contiguous(), before + product)


def test_the_experts_products_are_added_in_place(kernels: Kernels) -> None:
    case = next(case for case in OPS["fp8_grouped_wgrad"].cases if case.name == "odd sizes")
    given = case.make(kernels.device)
    product = kernels.ops.fp8_grouped_wgrad(*given)
    there = torch.ones_like(product)
    kernels.ops.fp8_grouped_wgrad_(there, *given)
    assert not bitwise_problems(there, 1 + product)


def test_codes_that_are_not_aligned_are_copied(kernels: Kernels) -> None:
    a, *rest = operands(kernels, 70, 140, 256, gemm.SQUARES)
    room = a.new_empty(a.numel() + 1)
    room[1:] = a.flatten()
    outputs = [
        kernels.ops.fp8_gemm(codes, *rest, None, torch.float32, False)
        for codes in (a, room[1:].view(a.shape))
    ]
    assert not bitwise_problems(*outputs)


def test_a_code_that_is_no_number_spoils_its_row_alone(kernels: Kernels) -> None:
    given = operands(kernels, 70, 140, 256, gemm.SQUARES)
    given[0].view(torch.uint8)[33, 200] = 0x7F
    out = kernels.ops.fp8_gemm(*given, None, torch.float32, False)
    assert out.isnan().any(1).nonzero().flatten().tolist() == [33]
    assert out[33].isnan().all()
