"""Quantizing to FP8, exhaustively: every bf16 number, every e4m3 code, and the bytes of others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels import moe_permute, moe_sort
from r1kernels.fp8.format import E4M3
from r1kernels.testing.compare import bitwise_problems, ordinal
from tests.core.test_ops import ISA_SUBJECTS, SUBJECTS, Subject

QUANTIZE = [v for v in SUBJECTS + ISA_SUBJECTS if v.op.name == "fp8_quantize"]
DEQUANTIZE = [v for v in SUBJECTS + ISA_SUBJECTS if v.op.name == "fp8_dequantize"]
FINITE = torch.arange(127)  # codes without sign and without NaN
VALUES = torch.where(  # e4m3 by its definition: 2^-6·m/8, and 2^(e-7)·(1 + m/8)
    FINITE < 8,
    FINITE / 512,
    torch.ldexp(1 + (FINITE % 8) / 8, FINITE // 8 - 7),
).double()


def all_bf16() -> Tensor:
    """[512, 128]: every bf16 there is."""
    bits = torch.arange(65536, dtype=torch.int32) - 32768
    return bits.to(torch.int16).view(torch.bfloat16).view(512, 128)


def nearest(x: Tensor) -> Tensor:
    """e4m3 codes of float64 numbers, by looking for the nearest one; ties to the even code."""
    magnitude = x.abs().clamp(max=448)
    above = torch.searchsorted(VALUES, magnitude).clamp(max=126)
    below = (above - 1).clamp(min=0)
    up, down = VALUES[above] - magnitude, magnitude - VALUES[below]
    code = torch.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    code = torch.where(x.isfinite(), code + 128 * x.signbit(), 127)
    return code.to(torch.uint8)


@pytest.mark.parametrize("subject", QUANTIZE, ids=str)
@pytest.mark.parametrize("ue8m0", [False, True], ids=["float", "ue8m0"])
def test_every_bf16_number_gets_the_nearest_code(subject: Subject, ue8m0: bool) -> None:
    # Sorted by magnitude, so that a block of 128 has one exponent and codes of every size occur
    # through the block maxima that are put beside them.
    x = all_bf16()
    largest = torch.tensor([1.0, 3.0, 448.0, 2.0**100]).bfloat16()
    for most in largest:
        capped = torch.where(x.abs() > most, most, x)
        capped[:, 0] = most
        with subject.active() as run:
            data, scale, *_ = run(capped, None, 1, 1, 128, ue8m0, False)
        assert (scale == scale[0]).all()
        expected = float(most) / 448
        if ue8m0:
            expected = 2.0 ** torch.tensor(expected).log2().ceil().item()
        torch.testing.assert_close(scale[0, 0].item(), expected, rtol=1e-7, atol=0)
        scaled = (capped.float() * (1 / scale)).double()
        codes = data.view(torch.uint8)
        nan = scaled.isnan() | ~capped.isfinite()
        assert torch.equal(codes[~nan], nearest(scaled)[~nan])
        assert data[nan].isnan().all()


@pytest.mark.parametrize("subject", DEQUANTIZE, ids=str)
def test_every_code_has_its_value(subject: Subject) -> None:
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(1, 256).view(E4M3)
    with subject.active() as run:
        (got,) = run(codes, torch.ones(1, 1), torch.float32)
    values = torch.cat([VALUES, torch.tensor([torch.nan])]).float()
    assert not bitwise_problems(got[0], torch.cat([values, -values]))


@pytest.mark.parametrize("subject", QUANTIZE, ids=str)
def test_what_is_no_number_stays_alone(subject: Subject) -> None:
    x = torch.full((1, 128), 2.0)
    x[0, 3], x[0, 5], x[0, 7] = torch.nan, torch.inf, -torch.inf
    with subject.active() as run:
        data, scale, *_ = run(x, None, 1, 1, 128, False, False)
    assert scale.item() == pytest.approx(2 / 448)
    assert data.float().isnan().nonzero()[:, 1].tolist() == [3, 5, 7]
    assert (data.float()[0, :3] == 448).all()


def test_small_gradients_keep_their_precision() -> None:
    """A floor of 1e-4 under the maximum, as in DeepSeek's own kernels, would leave one bit."""
    x = torch.randn(4, 256) * 1e-9
    back = r1kernels.fp8_dequantize(*r1kernels.fp8_quantize(x)[:2], dtype=torch.float32)
    assert ((back - x).abs() <= x.abs() / 16 + x.abs().max() / 448 / 512).all()


def test_ue8m0_keeps_a_power_of_two_and_rounds_all_else_up() -> None:
    exponents = torch.arange(-60.0, 60.0)
    exact = torch.ldexp(torch.full((120, 1), 448.0), exponents[:, None].int())
    for x, expected in ((exact, exponents), (exact * (1 + 2**-20), exponents + 1)):
        scale = r1kernels.fp8_quantize(x, scale_format="ue8m0").scale
        assert torch.equal(scale[:, 0].log2(), expected)


def test_both_is_the_transpose_quantized_and_a_gather_is_a_permutation() -> None:
    x = torch.randn(200, 150).bfloat16()
    both = r1kernels.fp8_quantize(x, both=True)
    alone = r1kernels.fp8_quantize(x.T.contiguous())
    assert not bitwise_problems(both.transposed.data[:, :200].contiguous(), alone.data)
    assert not bitwise_problems(both.transposed.scale, alone.scale)
    assert (both.transposed.data[:, 200:].view(torch.uint8) == 0).all()
    ids = torch.rand(200, 6).argsort(1)[:, :2].contiguous()
    order = moe_sort(ids, 6, align=128)
    found = r1kernels.fp8_quantize(x, gather=order.gather, top_k=2, both=True)
    rows = moe_permute(x, order.gather, order.inverse)
    for a, b in zip(found, r1kernels.fp8_quantize(rows, both=True), strict=True):
        assert not bitwise_problems(a, b)


def steps_apart(a: Tensor, b: Tensor) -> Tensor:
    return (ordinal(a) - ordinal(b)).abs()


def test_codes_are_those_of_transformers_up_to_one_step() -> None:
    """It multiplies by 448/max, rounded once, where we multiply by 1/(max/448), rounded twice."""
    finegrained = pytest.importorskip("transformers.integrations.finegrained_fp8")
    config = SimpleNamespace(weight_block_size=(128, 128), scale_fmt="float")
    theirs = finegrained.Fp8Quantize(SimpleNamespace(quantization_config=config))
    x = torch.randn(512, 384)
    found = theirs._quantize_one("w.weight", x)
    ours = r1kernels.fp8_quantize(x, block=(128, 128))
    apart = steps_apart(ours.data, found["w.weight"])
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 1e-5  # only where a rounding falls on a tie
    torch.testing.assert_close(ours.scale, found["w.weight_scale_inv"], rtol=2e-7, atol=0)


def test_codes_are_those_of_torchao_up_to_one_step() -> None:
    """Its recipe for 1 × 128: max in float64, clamped at 1e-12, x·(448/max) in float32."""
    x = torch.randn(64, 512).bfloat16()
    amax = x.view(64, 4, 128).abs().amax(2, keepdim=True).double().clamp(min=1e-12)
    scale = (448 / amax).float()
    theirs = (x.view(64, 4, 128).float() * scale).clamp(-448, 448).to(E4M3).view(64, 512)
    ours = r1kernels.fp8_quantize(x)
    apart = steps_apart(ours.data, theirs)
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 1e-3  # bf16 over its maximum is a tie more often
    torch.testing.assert_close(ours.scale, (1 / scale)[:, :, 0], rtol=2e-7, atol=0)


def test_a_row_does_not_depend_on_its_batch() -> None:
    x = torch.randn(300, 200).bfloat16()
    whole = r1kernels.fp8_quantize(x)
    for rows in (1, 7, 130):
        part = r1kernels.fp8_quantize(x[:rows])
        assert not bitwise_problems(part.data, whole.data[:rows])
        assert not bitwise_problems(part.scale, whole.scale[:rows])


X = torch.ones(4, 256)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: r1kernels.fp8_quantize(X[0]), r"x: expected shape \[R, C\] or \[E, R, C\]"),
        (lambda: r1kernels.fp8_quantize(X.double()), "x: expected dtype float32 or bfloat16"),
        (lambda: r1kernels.fp8_quantize(X, block=(1, 64)), r"block: expected one of .*\(1, 64\)"),
        (lambda: r1kernels.fp8_quantize(X, scale_format="e8"), "scale_format: expected one of"),
        (lambda: r1kernels.fp8_quantize(X, block=(128, 1), both=True), "both: expected block"),
        (lambda: r1kernels.fp8_quantize(X, gather=torch.tensor([4]).int()), r"gather\[0\]"),
        (lambda: r1kernels.fp8_quantize(X).transposed, "transposed: expected one made with both"),
        (lambda: r1kernels.fp8_dequantize(X, X), "data: expected dtype float8_e4m3fn"),
        (lambda: r1kernels.fp8_dequantize(X.to(E4M3), torch.ones(4, 3)), r"scale: expected .*4, 2"),
        (lambda: r1kernels.fp8_dequantize(X.to(E4M3), torch.ones(4, 2).half()), "dtype float32"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
