"""fp8_grouped_gemm and fp8_grouped_wgrad: unquantised products, layouts, batches, bad arguments."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.fp8.format import BLOCK, FP8Tensor
from r1kernels.fp8.gemm import FP8_GEMM, ROW_WISE, ROWS, SQUARES, WHOLE, quantized
from r1kernels.fp8.grouped_gemm import FP8_GROUPED_GEMM
from r1kernels.fp8.grouped_wgrad import FP8_GROUPED_WGRAD, FP8_GROUPED_WGRAD_
from tests.core.test_ops import ISA_SUBJECTS, SUBJECTS, Subject

FP32 = torch.float32
COUNTS = (5, 0, 130, 1, 70, 0)
EXPERTS = len(COUNTS)
SIZES = pytest.mark.parametrize(("n", "k"), [(96, 256), (141, 203), (130, 385)], ids=str)
LAYOUTS = pytest.mark.parametrize("transposed", [False, True], ids=["linear", "transposed"])


def implementations(op: r1kernels.core.op.Op, backends: tuple[str, ...]) -> pytest.MarkDecorator:
    found = [v for v in SUBJECTS + ISA_SUBJECTS if v.op is op and v.backend in backends]
    return pytest.mark.parametrize("subject", found, ids=str)


# The reference calls a matrix product for each expert, whose order of sums depends on its size.
PRODUCTS = implementations(FP8_GROUPED_GEMM, ("torch", "cpp"))
PRODUCTS_OF_A_ROW = implementations(FP8_GROUPED_GEMM, ("cpp",))
GRADIENTS = implementations(FP8_GROUPED_WGRAD, ("torch", "cpp"))
GRADIENTS_OF_AN_EXPERT = implementations(FP8_GROUPED_WGRAD, ("cpp",))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def offsets_of(counts: tuple[int, ...], align: int = 1) -> Tensor:
    span = (torch.tensor(counts) + align - 1) // align * align
    return torch.cat([torch.zeros(1, dtype=span.dtype), span.cumsum(0)]).int()


def counts_of(counts: tuple[int, ...]) -> Tensor:
    return torch.tensor(counts, dtype=torch.int32)


def weights(n: int, k: int, transposed: bool, block: tuple[int, int] = SQUARES) -> FP8Tensor:
    """[E, N, K], or the same codes and scales as [E, K, N]."""
    data, scale = quantized(normal(EXPERTS, n, k) / k**0.5, block)
    if transposed:
        data, scale = data.mT.contiguous(), scale.mT.contiguous()
    return FP8Tensor(data, scale)


def assert_close(got: Tensor, exact: Tensor) -> None:
    """Of the whole, DeepGEMM's measure; of a row, the error's norm against the row's."""
    x, y = got.double().flatten(0, -2), exact.double().flatten(0, -2)
    assert 1 - 2 * float((x * y).sum() / (x.square().sum() + y.square().sum())) < 1e-3
    # Codes are off by 2.6 % (root mean square), products of two by 3.7 %; a row by twice that.
    assert ((x - y).norm(dim=1) <= 0.075 * y.norm(dim=1)).all()  # rows of nobody are 0 in both


def padded(x: Tensor, offsets: Tensor) -> Tensor:
    """The rows of each expert where it begins in an aligned layout, zeros between them."""
    out = x.new_zeros(int(offsets[-1]), x.shape[1])
    first = 0
    for start, count in zip(offsets.tolist(), COUNTS, strict=False):
        out[start : start + count] = x[first : first + count]
        first += count
    return out


@SIZES
@PRODUCTS
def test_forward_and_dgrad_are_near_the_unquantised_products(
    subject: Subject, n: int, k: int
) -> None:
    ends = offsets_of(COUNTS)
    x, dy, w = normal(sum(COUNTS), k), normal(sum(COUNTS), n), normal(EXPERTS, n, k) / k**0.5
    rows = [slice(start, end) for start, end in pairwise(ends.tolist())]
    weight = quantized(w, SQUARES)
    with subject.active() as run:
        (y,) = run(*quantized(x, ROWS), *weight, ends[:-1], ends[1:], torch.bfloat16, False)
        (dx,) = run(*quantized(dy, ROWS), *weight, ends[:-1], ends[1:], torch.bfloat16, True)
    assert_close(y, torch.cat([x[part] @ w[e].T for e, part in enumerate(rows)]))
    assert_close(dx, torch.cat([dy[part] @ w[e] for e, part in enumerate(rows)]))


@SIZES
@GRADIENTS
def test_wgrad_is_near_the_unquantised_product(subject: Subject, n: int, k: int) -> None:
    ends = offsets_of(COUNTS, BLOCK)
    dy, x = (padded(normal(sum(COUNTS), size), ends) for size in (n, k))
    given = *quantized(dy.T.contiguous(), ROWS), *quantized(x.T.contiguous(), ROWS)
    with subject.active() as run:
        (out,) = run(*given, ends)
    exact = [dy[start:end].T @ x[start:end] for start, end in pairwise(ends.tolist())]
    assert_close(out, torch.stack(exact))
    without_rows = [e for e, count in enumerate(COUNTS) if not count]
    assert not out[without_rows].any()


@LAYOUTS
@PRODUCTS
def test_rows_of_nobody_are_zero_whatever_they_hold(subject: Subject, transposed: bool) -> None:
    weight = weights(141, 203, transposed)
    starts = offsets_of(COUNTS, BLOCK)
    ends = starts[:-1] + counts_of(COUNTS)
    rows = int(starts[-1]) + 7
    owned = torch.zeros(rows, dtype=torch.bool)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=False):
        owned[start:end] = True
    data, scale = quantized(normal(rows, 203), ROWS)
    data.view(torch.uint8)[~owned] = 0x7F
    scale[~owned] = torch.nan
    with subject.active() as run:
        (out,) = run(data, scale, *weight[:2], starts[:-1], ends, FP32, transposed)
    assert not out[~owned].any()
    assert out[owned].isfinite().all()


@LAYOUTS
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, FP32, torch.float16], ids=str)
@PRODUCTS_OF_A_ROW
def test_masked_and_padded_rows_are_the_bits_of_contiguous_ones(
    subject: Subject, out_dtype: torch.dtype, transposed: bool
) -> None:
    weight, counts = weights(141, 203, transposed), counts_of(COUNTS)
    a = FP8Tensor(*quantized(normal(sum(COUNTS), 203), ROWS))
    tight, aligned = offsets_of(COUNTS), offsets_of(COUNTS, BLOCK)
    room = max(COUNTS) + 3
    masked = FP8Tensor(
        torch.zeros(EXPERTS, room, 203).to(a.data.dtype), torch.ones(EXPERTS, room, 2)
    )
    wide = FP8Tensor(
        torch.zeros(int(aligned[-1]), 203).to(a.data.dtype), torch.ones(int(aligned[-1]), 2)
    )
    for e, (start, end) in enumerate(pairwise(tight.tolist())):
        at = slice(int(aligned[e]), int(aligned[e]) + end - start)
        for from_, to_masked, to_wide in zip(a[:2], masked[:2], wide[:2], strict=True):
            to_masked[e, : end - start] = to_wide[at] = from_[start:end]
    given = {"out_dtype": out_dtype, "transposed": transposed}
    with subject.active():
        expected = r1kernels.fp8_grouped_gemm(a, weight, offsets=tight, **given)
        of_masked = r1kernels.fp8_grouped_gemm(masked, weight, counts=counts, **given)
        of_wide = r1kernels.fp8_grouped_gemm(wide, weight, offsets=aligned, counts=counts, **given)
    for e, (start, end) in enumerate(pairwise(tight.tolist())):
        first = int(aligned[e])
        assert torch.equal(of_masked[e, : end - start], expected[start:end])
        assert torch.equal(of_wide[first : first + end - start], expected[start:end])
        assert not of_masked[e, end - start :].any()


@LAYOUTS
@pytest.mark.parametrize("block", [SQUARES, ROW_WISE, WHOLE], ids=str)
@PRODUCTS_OF_A_ROW
def test_each_expert_is_an_fp8_gemm_bit_for_bit(
    subject: Subject, block: tuple[int, int], transposed: bool
) -> None:
    data, scale = quantized(normal(sum(COUNTS), 385), ROWS)
    weight, ends = weights(130, 385, transposed, block), offsets_of(COUNTS)
    with subject.active() as run, FP8_GEMM.using("cpp"):
        (out,) = run(data, scale, *weight[:2], ends[:-1], ends[1:], FP32, transposed)
        for e, (start, end) in enumerate(pairwise(ends.tolist())):
            left = data[start:end], scale[start:end]
            right = weight.data[e], weight.scale[e]
            assert torch.equal(out[start:end], FP8_GEMM(*left, *right, None, FP32, transposed)), e


@LAYOUTS
@PRODUCTS_OF_A_ROW
def test_a_row_does_not_depend_on_its_neighbours(subject: Subject, transposed: bool) -> None:
    data, scale = quantized(normal(sum(COUNTS), 385), ROWS)
    weight, ends = weights(130, 385, transposed), offsets_of(COUNTS)
    with subject.active() as run:
        (whole,) = run(data, scale, *weight[:2], ends[:-1], ends[1:], FP32, transposed)
        for e, (start, end) in enumerate(pairwise(ends.tolist())):
            for row in range(start, end, 9):
                alone = offsets_of(tuple(int(other == e) for other in range(EXPERTS)))
                one = data[row : row + 1], scale[row : row + 1]
                (out,) = run(*one, *weight[:2], alone[:-1], alone[1:], FP32, transposed)
                assert torch.equal(out[0], whole[row]), (e, row)


@GRADIENTS_OF_AN_EXPERT
def test_each_gradient_is_an_fp8_gemm_bit_for_bit(subject: Subject) -> None:
    ends = offsets_of(COUNTS, BLOCK)
    left, left_scale = quantized(normal(141, int(ends[-1])), ROWS)
    right, right_scale = quantized(normal(77, int(ends[-1])), ROWS)
    with subject.active() as run, FP8_GEMM.using("cpp"):
        (out,) = run(left, left_scale, right, right_scale, ends)
        for e, (start, end) in enumerate(pairwise(ends.tolist())):
            rows, in_blocks = slice(start, end), slice(start // BLOCK, end // BLOCK)
            a = left[:, rows].contiguous(), left_scale[:, in_blocks].contiguous()
            b = right[:, rows].contiguous(), right_scale[:, in_blocks].contiguous()
            if start < end:
                assert torch.equal(out[e], FP8_GEMM(*a, *b, None, FP32, False)), e
            else:
                assert not out[e].any()


@GRADIENTS
def test_wgrad_accumulates_in_place(subject: Subject) -> None:
    ends = offsets_of(COUNTS, BLOCK)
    given = *quantized(normal(45, int(ends[-1])), ROWS), *quantized(normal(77, int(ends[-1])), ROWS)
    wide = normal(EXPERTS, 45, 2 * 77)
    before = wide.clone()
    with subject.active() as run, FP8_GROUPED_WGRAD_.using(subject.backend):
        (product,) = run(*given, ends)
        FP8_GROUPED_WGRAD_(wide[..., :77], *given, ends)  # not contiguous
    assert torch.equal(wide[..., :77], before[..., :77] + product)
    assert torch.equal(wide[..., 77:], before[..., 77:])


@PRODUCTS_OF_A_ROW
def test_threads_change_no_bit(subject: Subject) -> None:
    a, ends = quantized(normal(sum(COUNTS), 385), ROWS), offsets_of(COUNTS)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with subject.active() as run:
                results += run(*a, *weights(130, 385, False)[:2], ends[:-1], ends[1:], FP32, False)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_bad_arguments_of_the_product() -> None:
    product, ends = r1kernels.fp8_grouped_gemm, offsets_of(COUNTS)
    a, b = FP8Tensor(*quantized(normal(sum(COUNTS), 256), ROWS)), weights(130, 256, False)
    with pytest.raises(ValueError, match=r"fp8_grouped_gemm: counts: .*without offsets, got None"):
        product(FP8Tensor(a.data.expand(6, -1, -1), a.scale.expand(6, -1, -1)), b)
    with pytest.raises(ValueError, match=r"offsets: expected E\+1 = 7 .*, got \[6\]"):
        product(a, b, offsets=ends[:-1])
    with pytest.raises(TypeError, match=r"offsets: expected dtype int32, got int64"):
        product(a, b, offsets=ends.long())
    with pytest.raises(ValueError, match=r"a.scale: expected a scale .*got \[205, 2\]"):
        product(FP8Tensor(a.data, a.scale[1:]), b, offsets=ends)
    with pytest.raises(ValueError, match=r"b.scale: expected a scale .*got \[5, 2, 2\]"):
        product(a, FP8Tensor(b.data, b.scale[1:]), offsets=ends)
    with pytest.raises(ValueError, match=r"a.data: expected K = 130 in shape"):
        product(a, b, offsets=ends, transposed=True)
    beyond = ends.clone()
    beyond[-1] += 1
    with pytest.raises(ValueError, match=r"rows of expert 5: .*≤ 206, got 206 to 207"):
        product(a, b, offsets=beyond)
    overlapping = counts_of((6, 0, 130, 1, 69, 0))
    with pytest.raises(ValueError, match=r"rows of expert 1: expected 6 ≤ first .*got 5 to 5"):
        product(a, b, offsets=ends, counts=overlapping)
    with pytest.raises(ValueError, match=r"rows of expert 1: expected 6 ≤ first .*got 6 to 5"):
        product(a, b, offsets=counts_of((0, 6, 5, 135, 136, 206, 206)))
    with pytest.raises(TypeError, match=r"out_dtype: expected a float dtype .*got torch.float64"):
        product(a, b, offsets=ends, out_dtype=torch.float64)


def test_bad_arguments_of_the_gradient() -> None:
    wgrad, ends = r1kernels.fp8_grouped_wgrad, offsets_of((130, 0, 70), BLOCK)
    left, right = (FP8Tensor(*quantized(normal(size, 384), ROWS)) for size in (45, 77))
    for bad in ([0, 128, 200, 384], [0, 256, 128, 384], [0, 128, 256, 512], [128, 128, 256, 384]):
        with pytest.raises(ValueError, match=r"fp8_grouped_wgrad: offsets: expected multiples of"):
            wgrad(left, right, torch.tensor(bad, dtype=torch.int32))
    with pytest.raises(TypeError, match=r"offsets: expected dtype int32, got int64"):
        wgrad(left, right, ends.long())
    with pytest.raises(ValueError, match=r"left: expected P in multiples of 128 .*got P = 384"):
        wgrad(FP8Tensor(left.data, left.scale[:, 1:]), right, ends)
    with pytest.raises(ValueError, match=r"left: expected P in multiples of 128 .*got P = 383"):
        wgrad(FP8Tensor(left.data[:, 1:], left.scale), right, ends)
    with pytest.raises(ValueError, match=r"accumulate: expected N = 45 in shape \[E, N, K\]"):
        wgrad(left, right, ends, accumulate=torch.zeros(3, 77, 45))
    with pytest.raises(TypeError, match=r"accumulate: expected dtype float32, got bfloat16"):
        wgrad(left, right, ends, accumulate=torch.zeros(3, 45, 77).bfloat16())
