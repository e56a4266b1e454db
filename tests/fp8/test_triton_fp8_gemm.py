"""What the cases of FP8 products leave out: adding in place, batches, rows that nobody has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from r1kernels import triton
from r1kernels.core.op import Op
from r1kernels.fp8 import gemm
from r1kernels.fp8.format import E4M3
from r1kernels.fp8.gemm import FP8_GEMM, FP8_GEMM_
from r1kernels.fp8.grouped_gemm import FP8_GROUPED_GEMM
from r1kernels.fp8.grouped_wgrad import FP8_GROUPED_WGRAD, FP8_GROUPED_WGRAD_
from r1kernels.testing.compare import bitwise_problems
from r1kernels.testing.poison import poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not triton.INTERPRETED, reason="neither a GPU nor Triton's interpreter"
)


def on_triton(op: Op, *args: Any) -> Any:
    with op.using("triton"), poisoned():
        return op(*args)


def quantized(*shape: int, block: tuple[int, int] = gemm.ROWS) -> tuple[Tensor, Tensor]:
    data, scale = gemm.quantized(torch.randn(shape), block)
    return data.to(DEVICE), scale.to(DEVICE)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def test_every_code_has_its_value() -> None:
    """Times one: all 256 of them, subnormal ones and NaN too."""
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(E4M3)
    one, scale = torch.ones(1, 1, device=DEVICE).to(E4M3), torch.ones(1, 1, device=DEVICE)
    args = codes[:, None].contiguous(), scale, one, scale, None, torch.float32, False
    out = on_triton(FP8_GEMM, *args)
    torch.testing.assert_close(out[:, 0], codes.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_does_not_depend_on_its_batch(transposed: bool) -> None:
    a, a_scale = quantized(100, 200)
    b = quantized(*((200, 70) if transposed else (70, 200)), block=gemm.SQUARES)
    whole = on_triton(FP8_GEMM, a, a_scale, *b, None, torch.float32, transposed)
    for rows in (slice(0, 1), slice(31, 68)):
        some = on_triton(FP8_GEMM, a[rows], a_scale[rows], *b, None, torch.float32, transposed)
        assert not bitwise_problems(some, whole[rows])


@pytest.mark.parametrize("strided", [False, True])
def test_products_are_added_in_place(strided: bool) -> None:
    given = *quantized(70, 256), *quantized(150, 256)
    before = torch.randn(70, 150, device=DEVICE)
    sums = before.T.contiguous().T if strided else before.clone()
    on_triton(FP8_GEMM_, sums, *given, False)
    product = on_triton(FP8_GEMM, *given, None, torch.float32, False)
    assert not bitwise_problems(sums.contiguous(), before + product)


@pytest.mark.parametrize("strided", [False, True])
def test_weight_gradients_are_added_in_place(strided: bool) -> None:
    given = *quantized(70, 384), *quantized(130, 384), int32(0, 128, 128, 384)
    before = torch.randn(3, 70, 130, device=DEVICE)
    sums = before.mT.contiguous().mT if strided else before.clone()
    on_triton(FP8_GROUPED_WGRAD_, sums, *given)
    assert not bitwise_problems(sums.contiguous(), before + on_triton(FP8_GROUPED_WGRAD, *given))


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_of_nobody_are_zero_whatever_they_hold(transposed: bool) -> None:
    """Before the first expert, between two, and after the last; several tiles of them."""
    a, a_scale = quantized(400, 130)
    starts, ends = int32(70, 90, 90, 300), int32(75, 90, 160, 303)
    b, b_scale = quantized(*((4, 130, 40) if transposed else (4, 40, 130)), block=gemm.SQUARES)
    taken = torch.zeros(400, dtype=torch.bool, device=DEVICE)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        taken[start:end] = True
    a.view(torch.uint8)[~taken] = 0x7F
    a_scale[~taken] = torch.nan
    out = on_triton(
        FP8_GROUPED_GEMM, a, a_scale, b, b_scale, starts, ends, torch.float32, transposed
    )
    assert not out[~taken].any()
    for e, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        rows = slice(start, end)
        pair = a[rows], a_scale[rows], b[e], b_scale[e]
        alone = on_triton(FP8_GEMM, *pair, None, torch.float32, transposed)
        assert not bitwise_problems(out[rows], alone)
