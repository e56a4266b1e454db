"""FP8 in Triton: what the cases of its ops are too few for, and what the interpreter cannot see."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from r1kernels import triton
from r1kernels.fp8.dequantize import FP8_DEQUANTIZE
from r1kernels.fp8.format import BLOCK, E4M3
from r1kernels.fp8.quantize import FP8_QUANTIZE
from r1kernels.testing.compare import bitwise_problems

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not triton.INTERPRETED, reason="neither a GPU nor Triton's interpreter"
)


def with_scale_of_one(values: Tensor) -> Tensor:
    """[n] float32 → [⌈n/127⌉, 128]: each row ends with 448."""
    values = torch.nn.functional.pad(values, (0, -len(values) % (BLOCK - 1)))
    return torch.nn.functional.pad(values.view(-1, BLOCK - 1), (0, 1), value=448.0).to(DEVICE)


def codes_by_triton(x: Tensor, both: bool = False) -> tuple[Tensor, ...]:
    with FP8_QUANTIZE.using("triton"):
        return FP8_QUANTIZE(x, None, 1, 1, BLOCK, False, both)


def test_all_bfloat16_are_encoded_as_pytorch_casts_them() -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    x = with_scale_of_one(torch.where(every.abs() <= 448, every, torch.nan).float())
    data, scale, _, _ = codes_by_triton(x.bfloat16())
    assert (scale == 1).all()
    assert not bitwise_problems(data, x.to(E4M3))


def test_float32_next_to_ties_are_rounded_once() -> None:
    """Between two codes: the middle, and the floats beside it; also below the normal codes."""
    positive = torch.arange(127, dtype=torch.uint8).view(E4M3).float()
    middle = (positive[1:] + positive[:-1]) / 2
    zero, infinity = torch.zeros(()), torch.tensor(torch.inf)
    near = torch.cat([middle, middle.nextafter(zero), middle.nextafter(infinity)])
    x = with_scale_of_one(torch.cat([near, -near]))
    data, scale, _, _ = codes_by_triton(x)
    assert (scale == 1).all()
    assert not bitwise_problems(data, x.to(E4M3))


def test_every_code_comes_back() -> None:
    data = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(2, BLOCK).view(E4M3).to(DEVICE)
    with FP8_DEQUANTIZE.using("triton"):
        x = FP8_DEQUANTIZE(data, torch.ones(1, 1, device=DEVICE), torch.float32)
    assert not bitwise_problems(x, data.float())


def test_a_row_does_not_depend_on_its_batch() -> None:
    x = torch.randn(200, 300, device=DEVICE)
    data, scale, _, _ = codes_by_triton(x, both=True)
    for part in (slice(0, 1), slice(60, 97)):
        found = codes_by_triton(x[part])
        assert not bitwise_problems(found[0], data[part])
        # On a GPU the scales lie column by column.
        assert not bitwise_problems(found[1].contiguous(), scale[part].contiguous())


def test_slots_out_of_range_are_read_as_padding() -> None:
    """On a GPU nobody looks at ``gather`` before the kernel does."""
    x = torch.randn(3, 200, device=DEVICE)
    gather = torch.tensor([2, 2**30, 5, -7, 6], dtype=torch.int32, device=DEVICE)
    assert FP8_QUANTIZE.absent("triton") is None
    found = FP8_QUANTIZE.implementations["triton"].run(x, gather, 2, 1, BLOCK, False, True)
    none = torch.zeros_like(x[0])
    rows = torch.stack([x[1], none, x[2], none, none])
    for got, expected in zip(found, codes_by_triton(rows, both=True), strict=True):
        assert not bitwise_problems(got, expected)


ARITHMETIC = r"""
import re
from triton.backends.compiler import GPUTarget
from r1kernels.fp8.triton import quantize
from r1kernels.triton.build import compile_for

for build in quantize.BUILDS:
    ptx = compile_for(build, GPUTarget("cuda", 90, 32)).asm["ptx"]
    assert "div.rn.f32" in ptx
    assert not re.search(r"\.ftz|\bfma\.|div\.(full|approx)|(mul|add|sub)\.f32", ptx)
print("compiled", len(quantize.BUILDS))
"""


def test_compiled_every_operation_rounds_by_itself() -> None:
    """No product is fused into a sum, no subnormal flushed, no quotient approximate."""
    environment = {key: os.environ[key] for key in os.environ if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", ARITHMETIC], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "compiled 6\n"
