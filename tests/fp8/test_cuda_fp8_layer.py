"""A linear layer in CUDA C++: quantizing, few rows and many; on an H100, or on the emulator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from r1kernels.core.op import OPS, Case
from r1kernels.fp8 import gemm, quantize
from r1kernels.testing.compare import Truth, as_tuple, bitwise_problems
from r1kernels.testing.poison import poisoned
from tests.emulated_cuda import Kernels

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = pytest.mark.parametrize("kernels", ["gpu" if HOPPER else "sm_90"], indirect=True)
DTYPES = (torch.float32, torch.bfloat16)


def cases(op: str) -> list[Case]:
    """Those that the kernel takes."""
    made = [(case, case.make("cpu")) for case in OPS[op].cases if not case.bench]
    return [
        case
        for case, (x, *rest) in made
        if x.dtype in DTYPES and (op != "fp8_quantize" or (x.dim() == 2 and rest[2] == 1))
    ]


@pytest.mark.parametrize("case", cases("fp8_quantize"), ids=lambda case: case.name)
def test_quantizing_gives_the_references_bytes(kernels: Kernels, case: Case) -> None:
    args = case.make(kernels.device)
    with poisoned():
        outputs = as_tuple(kernels.ops.fp8_quantize(*args))
    for got, expected in zip(outputs, quantize.reference(*args), strict=True):
        assert got.shape == expected.shape
        assert not bitwise_problems(got.contiguous(), expected.contiguous())
    for scale in (outputs[1], outputs[3]):
        if scale.numel():
            assert scale.stride() == (1, -(-scale.shape[0] // 4) * 4)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_not_aligned_are_quantized_alike(
    kernels: Kernels, dtype: torch.dtype, both: bool
) -> None:
    x = torch.randn(140, 264, generator=torch.Generator().manual_seed(0)).to(kernels.device, dtype)
    room = x.new_empty(140, 272)
    expected = kernels.ops.fp8_quantize(x, None, 1, 1, 128, False, both)
    for first in (0, 1, 8):  # the last one aligned, with a stride
        rows = room[:, first : first + 264]
        rows.copy_(x)
        got = kernels.ops.fp8_quantize(rows, None, 1, 1, 128, False, both)
        for a, b in zip(got, expected, strict=True):
            assert not bitwise_problems(a.contiguous(), b.contiguous())


@pytest.mark.parametrize("case", cases("fp8_linear_forward"), ids=lambda case: case.name)
def test_a_layer_equals_the_reference(kernels: Kernels, case: Case) -> None:
    args = case.make(kernels.device)
    op = OPS["fp8_linear_forward"]
    with poisoned():
        outputs = as_tuple(op_of(kernels)(*args))
    if kernels.device == "cpu":  # where the reference has scales row by row
        outputs = tuple(output.contiguous() for output in outputs)
    assert not Truth(op, case, args).check("cuda", outputs).problems


def op_of(kernels: Kernels) -> object:
    return kernels.ops.fp8_linear_forward


def layer(kernels: Kernels, rows: int, columns: int, depth: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, depth, generator=rng).to(kernels.device, torch.bfloat16)
    codes = gemm.quantized(torch.randn(columns, depth, generator=rng), gemm.SQUARES)
    return [x, *(t.to(kernels.device) for t in codes)]


def test_a_row_has_the_same_bits_among_few_rows_and_many(kernels: Kernels) -> None:
    x, *weight = layer(kernels, 140, 200, 640)
    options = None, False, False
    whole, *_ = kernels.ops.fp8_linear_forward(x, *weight, *options)
    for rows in (
        slice(0, 1),
        slice(3, 19),
        slice(7, 48),
        slice(0, 64),
        slice(9, 137),
        slice(139, 140),
    ):
        alone, *_ = kernels.ops.fp8_linear_forward(x[rows], *weight, *options)
        assert not bitwise_problems(alone, whole[rows])


@pytest.mark.parametrize("rows", [5, 40, 128])
def test_more_tiles_and_a_longer_reduction_than_one_turn(kernels: Kernels, rows: int) -> None:
    x, *weight = layer(kernels, rows, 64 * 9 + 10, 128 * 34 + 16)  # the ring is full twice
    got, *_ = kernels.ops.fp8_linear_forward(x, *weight, None, False, False)
    codes = kernels.ops.fp8_quantize(x, None, 1, 1, 128, False, False)[:2]
    expected = kernels.ops.fp8_gemm(*codes, *weight, None, torch.bfloat16, False)
    assert not bitwise_problems(got, expected)


def test_a_number_that_is_none_spoils_its_row_alone(kernels: Kernels) -> None:
    x, *weight = layer(kernels, 20, 70, 256)
    x[7, 100] = torch.inf
    out, *_ = kernels.ops.fp8_linear_forward(x, *weight, None, False, False)
    assert out.isnan().any(1).nonzero().flatten().tolist() == [7]
