"""grouped_mm: formula, gradients, rows of no expert, the same bits in every batch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.core import native
from r1kernels.moe.grouped_mm import GROUPED_MM, GROUPED_MM_BACKWARD

COUNTS = (3, 0, 7, 1, 50, 0)
compiled = pytest.mark.skipif(native.load("cpp") is not None, reason="no C++ library")
layouts = pytest.mark.parametrize("transposed", [False, True], ids=["linear", "transposed"])


def operands(
    transposed: bool, dtype: torch.dtype, depth: int = 36, columns: int = 20, beyond: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(sum(COUNTS) + beyond, depth).to(dtype)
    shape = (depth, columns) if transposed else (columns, depth)
    weight = torch.randn(len(COUNTS), *shape).to(dtype)
    return x, weight, torch.tensor([0, *COUNTS]).cumsum(0, dtype=torch.int32)


@layouts
def test_gradcheck(transposed: bool) -> None:
    x, weight, offsets = operands(transposed, torch.float64, 3, 2, beyond=2)

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return r1kernels.grouped_mm(x, weight, offsets, transposed=transposed)

    assert torch.autograd.gradcheck(product, (x.requires_grad_(), weight.requires_grad_()))


@layouts
def test_rows_beyond_the_last_expert_are_zero_in_both_passes(transposed: bool) -> None:
    x, weight, offsets = operands(transposed, torch.float32, beyond=9)
    x[-9:] = torch.nan
    x.requires_grad_()
    weight.requires_grad_()
    out = r1kernels.grouped_mm(x, weight, offsets, transposed=transposed)
    assert (out[-9:] == 0).all()
    upstream = torch.ones_like(out)
    upstream[-9:] = torch.nan
    dx, dweight = torch.autograd.grad(out, (x, weight), upstream)
    assert (dx[-9:] == 0).all()
    assert dx.isfinite().all()
    assert dweight.isfinite().all()
    assert (dweight[[1, 5]] == 0).all()  # experts without rows


@compiled
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("depth", [37, 700], ids=["odd", "several slices"])
def test_a_row_is_the_same_bits_in_every_batch(
    transposed: bool, dtype: torch.dtype, depth: int
) -> None:
    x, weight, offsets = operands(transposed, dtype, depth)
    with r1kernels.using("cpp", GROUPED_MM):
        whole = r1kernels.grouped_mm(x, weight, offsets, transposed=transposed)
        for expert, (begin, end) in enumerate(pairwise(offsets.tolist())):
            for row in range(begin, end):
                alone = torch.tensor([0] * (expert + 1) + [1] * (len(COUNTS) - expert)).int()
                one = r1kernels.grouped_mm(x[row : row + 1], weight, alone, transposed=transposed)
                assert torch.equal(one[0], whole[row])


@compiled
def test_both_layouts_of_the_weight_give_the_same_bits() -> None:
    x, weight, offsets = operands(False, torch.bfloat16, 700)
    other = weight.transpose(1, 2).contiguous()
    with r1kernels.using("cpp", GROUPED_MM):
        linear = r1kernels.grouped_mm(x, weight, offsets)
        assert torch.equal(linear, r1kernels.grouped_mm(x, other, offsets, transposed=True))


@compiled
@layouts
def test_threads_change_no_bit(transposed: bool) -> None:
    x, weight, offsets = operands(transposed, torch.bfloat16, 130, 200)
    results = []
    with r1kernels.using("cpp", GROUPED_MM, GROUPED_MM_BACKWARD):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = GROUPED_MM(x, weight, offsets, transposed)
            results.append((out, GROUPED_MM_BACKWARD(out, x, offsets)))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@compiled
def test_what_other_libraries_leave_in_the_processor_does_not_matter() -> None:
    """PyTorch names shapes of AMX tiles of its own, on the same threads."""
    x, weight, offsets = operands(False, torch.bfloat16, 130, 200)
    with r1kernels.using("cpp", GROUPED_MM):
        before = r1kernels.grouped_mm(x, weight, offsets)
        for rows in (5, 16, 33):
            torch.mm(torch.ones(rows, 48).bfloat16(), torch.ones(48, 20).bfloat16())
            assert torch.equal(r1kernels.grouped_mm(x, weight, offsets), before)


@pytest.mark.parametrize("ends", [[0, 4, 2, 5], [1, 2, 3, 5], [0, 2, 3, 6]], ids=str)
def test_offsets_that_are_none(ends: list[int]) -> None:
    with pytest.raises(ValueError, match="grouped_mm: offsets: expected"):
        r1kernels.grouped_mm(torch.zeros(5, 4), torch.zeros(3, 2, 4), torch.tensor(ends).int())


def test_bad_arguments() -> None:
    x, weight, offsets = operands(False, torch.float32)
    with pytest.raises(ValueError, match=r"grouped_mm: weight: expected K = 36"):
        r1kernels.grouped_mm(x, weight[..., :30], offsets)
    with pytest.raises(TypeError, match="grouped_mm: weight: expected dtype float32, got bfloat16"):
        r1kernels.grouped_mm(x, weight.bfloat16(), offsets)
    with pytest.raises(ValueError, match=r"grouped_mm: offsets: expected E\+1 = 7 in shape"):
        r1kernels.grouped_mm(x, weight, offsets[:-1])
    with pytest.raises(TypeError, match="grouped_mm: offsets: expected dtype int32, got int64"):
        r1kernels.grouped_mm(x, weight, offsets.long())
