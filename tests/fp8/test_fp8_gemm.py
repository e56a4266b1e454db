"""fp8_gemm beyond the contract of test_ops.py: distance to unquantised products, rows, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.fp8.format import FP8Tensor
from r1kernels.fp8.gemm import (
    FP8_GEMM,
    FP8_GEMM_,
    ROW_WISE,
    ROWS,
    SQUARES,
    WHOLE,
    quantized,
)
from tests.core.test_ops import ISA_SUBJECTS, SUBJECTS, Subject

FP32 = torch.float32
IMPLEMENTATIONS = pytest.mark.parametrize(
    "subject",
    # BLAS chooses its order by the shape
    [v for v in SUBJECTS + ISA_SUBJECTS if v.op is FP8_GEMM and v.backend != "torch"],
    ids=str,
)
SHAPES = pytest.mark.parametrize(
    ("m", "n", "k"), [(64, 96, 256), (45, 141, 203), (1, 130, 385), (131, 48, 128)], ids=str
)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def fp8(x: Tensor, block: tuple[int, int]) -> FP8Tensor:
    return FP8Tensor(*quantized(x, block))


def assert_close(got: Tensor, exact: Tensor) -> None:
    """Of the whole, DeepGEMM's measure; of a row, the error's norm against the row's."""
    x, y = got.double(), exact.double()
    assert 1 - 2 * float((x * y).sum() / (x.square().sum() + y.square().sum())) < 1e-3
    # Codes are off by 2.6 % in the mean, products of two by 3.7 %: a row by less than twice that.
    assert ((x - y).norm(dim=1) < 0.075 * y.norm(dim=1)).all()


@SHAPES
def test_the_three_products_of_a_linear_layer(m: int, n: int, k: int) -> None:
    x, w, dy = normal(m, k), normal(n, k) / k**0.5, normal(m, n)
    weight = fp8(w, SQUARES)
    assert_close(r1kernels.fp8_gemm(fp8(x, ROWS), weight), x @ w.T)
    assert_close(r1kernels.fp8_gemm(fp8(dy, ROWS), weight, transposed=True), dy @ w)
    left, right = (fp8(t.T.contiguous(), ROWS) for t in (dy, x))
    assert_close(r1kernels.fp8_gemm(left, right, out_dtype=FP32), dy.T @ x)


@pytest.mark.parametrize("of_b", [ROWS, SQUARES, ROW_WISE, WHOLE], ids=str)
@pytest.mark.parametrize("of_a", [ROWS, SQUARES, ROW_WISE, WHOLE], ids=str)
def test_every_pair_of_granularities(of_a: tuple[int, int], of_b: tuple[int, int]) -> None:
    a, b = normal(150, 300), normal(140, 300)
    assert_close(r1kernels.fp8_gemm(fp8(a, of_a), fp8(b, of_b)), a @ b.T)


@SHAPES
@IMPLEMENTATIONS
def test_accumulates_in_place(subject: Subject, m: int, n: int, k: int) -> None:
    operands = *fp8(normal(m, k), ROWS)[:2], *fp8(normal(n, k), SQUARES)[:2]
    wide = normal(m, 2 * n)
    before = wide.clone()
    total = wide[:, :n]  # not contiguous
    with subject.active() as run, FP8_GEMM_.using(subject.backend):
        (product,) = run(*operands, None, FP32, False)
        FP8_GEMM_(total, *operands, False)
    assert torch.equal(total, before[:, :n] + product)
    assert torch.equal(wide[:, n:], before[:, n:])


@pytest.mark.parametrize("of_b", [ROWS, SQUARES, ROW_WISE], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@IMPLEMENTATIONS
def test_a_row_does_not_depend_on_its_batch(
    subject: Subject, transposed: bool, of_b: tuple[int, int]
) -> None:
    data, scale = quantized(normal(100, 333), ROWS)
    b = normal(141, 333)
    right = fp8(b, of_b)
    pair = right.data, right.scale
    if transposed:
        pair = right.data.T.contiguous(), right.scale.T.contiguous()
    with subject.active() as run:
        (whole,) = run(data, scale, *pair, None, FP32, transposed)
        for rows in (1, 7, 8, 9, 64, 100):
            (some,) = run(data[:rows], scale[:rows], *pair, None, FP32, transposed)
            assert torch.equal(some, whole[:rows]), rows


@IMPLEMENTATIONS
def test_every_code_is_its_value(subject: Subject) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    one, identity = torch.ones(1, 1), torch.eye(256).to(torch.float8_e4m3fn)
    values = codes.float().nan_to_num(0)
    finite = values.to(torch.float8_e4m3fn)
    with subject.active() as run:
        for transposed in (False, True):
            (left,) = run(finite[None], one, identity, one, None, FP32, transposed)
            assert torch.equal(left[0], values)
            column = finite[:, None] if transposed else finite[None]
            (right,) = run(identity, one, column, one, None, FP32, transposed)
            assert torch.equal(right[:, 0], values)
        (nan,) = run(codes[127:128, None], one, identity[:1, :1], one, None, FP32, False)
    assert nan.isnan().all()


@pytest.mark.parametrize("transposed", [False, True])
@IMPLEMENTATIONS
def test_every_code_in_whole_panels_and_nan_alone(subject: Subject, transposed: bool) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().nan_to_num(0)
    b = torch.stack([codes.roll(n) for n in range(141)]).to(torch.float8_e4m3fn)  # [N, K]
    one, identity = torch.ones(1, 1), torch.eye(256).to(torch.float8_e4m3fn)

    def right(values: Tensor) -> Tensor:
        return values.T.contiguous() if transposed else values

    with subject.active() as run:
        (out,) = run(identity, one, right(b), one, None, FP32, transposed)
        assert torch.equal(out, b.float().T)
        for n, k in ((5, 77), (47, 0), (48, 255), (140, 130)):
            spoiled = b.clone()
            spoiled[n, k] = torch.nan
            (with_nan,) = run(identity, one, right(spoiled), one, None, FP32, transposed)
            assert with_nan[:, n].isnan().all()
            assert torch.equal(with_nan[:, :n], out[:, :n])
            assert torch.equal(with_nan[:, n + 1 :], out[:, n + 1 :])


@IMPLEMENTATIONS
def test_products_of_small_scales_do_not_vanish(subject: Subject) -> None:
    codes, scale = quantized(torch.ones(1, 128), ROWS)
    tiny, large = scale * 1e-25, scale * 1e-18
    with subject.active() as run:
        (out,) = run(codes, tiny, codes, large, None, FP32, False)
    torch.testing.assert_close(out, torch.full((1, 1), 128e-43), rtol=0, atol=2e-45)


def test_threads_change_no_bit() -> None:
    operands = *fp8(normal(70, 300), ROWS)[:2], *fp8(normal(200, 300), SQUARES)[:2]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(FP8_GEMM(*operands, None, FP32, False))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_bad_arguments() -> None:
    a, b = fp8(normal(20, 256), ROWS), fp8(normal(130, 256), SQUARES)
    gemm = r1kernels.fp8_gemm
    with pytest.raises(ValueError, match=r"fp8_gemm: b.data: expected K = 256 .*got \[130, 128\]"):
        gemm(a, FP8Tensor(b.data[:, :128], b.scale))
    with pytest.raises(ValueError, match=r"fp8_gemm: b.data: expected K = 256"):
        gemm(a, b, transposed=True)
    with pytest.raises(TypeError, match=r"fp8_gemm: a.data: expected dtype float8_e4m3fn, got bfl"):
        gemm(FP8Tensor(a.data.bfloat16(), a.scale), b)
    with pytest.raises(ValueError, match=r"fp8_gemm: a.scale: expected a scale .*got \[19, 2\]"):
        gemm(FP8Tensor(a.data, a.scale[1:]), b)
    with pytest.raises(TypeError, match=r"fp8_gemm: b.scale: expected dtype float32, got bfloat16"):
        gemm(a, FP8Tensor(b.data, b.scale.bfloat16()))
    with pytest.raises(
        TypeError, match=r"fp8_gemm: out_dtype: expected one of bfloat16, .*float64"
    ):
        gemm(a, b, out_dtype=torch.float64)
    with pytest.raises(TypeError, match=r"fp8_gemm: bias: expected dtype bfloat16, got float32"):
        gemm(a, b, bias=torch.zeros(130))
    with pytest.raises(ValueError, match=r"fp8_gemm: bias: expected N = 130"):
        gemm(a, b, bias=torch.zeros(131, dtype=torch.bfloat16))
    total = torch.zeros(20, 130)
    with pytest.raises(ValueError, match=r"fp8_gemm: bias: expected None with accumulate"):
        gemm(a, b, accumulate=total, bias=torch.zeros(130, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"fp8_gemm: accumulate: expected dtype float32, got bfl"):
        gemm(a, b, accumulate=total.bfloat16())
    with pytest.raises(ValueError, match=r"fp8_gemm: accumulate: expected N = 130"):
        gemm(a, b, accumulate=total[:, 1:])
