"""FP8 codes and block scales to floats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.fp8 import quantize
from r1kernels.fp8.format import BLOCK, E4M3, check_scale, decode

DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def fp8_dequantize(data: Tensor, scale: Tensor, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """code · scale, rounded once.

    Args:
        data: [R, C] or [E, R, C] float8_e4m3fn.
        scale: float32, one factor for each row, column, block of 128, or for everything: its last
            two dimensions are R, ⌈R/128⌉ or 1, and C, ⌈C/128⌉ or 1.
        dtype: bfloat16, float32 or float16, that of the result.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    shapes = check.Shapes("fp8_dequantize")
    is_3d = isinstance(data, Tensor) and data.dim() == 3
    shapes("data", data, "E R C" if is_3d else "R C", (E4M3,))
    by_columns = False
    if isinstance(scale, Tensor) and scale.dim() == data.dim():
        by_columns = scale.shape[-1] == data.shape[-1]
    check_scale("fp8_dequantize", "scale", scale, tuple(data.shape), -2 if by_columns else -1)
    if dtype not in DTYPES:
        known = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(
            f"fp8_dequantize: dtype: expected one of {known}; got {check.described(dtype)}"
        )
    return FP8_DEQUANTIZE(data, scale, dtype)


def reference(data: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return decode(data, scale).to(dtype)


def _fake(data: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return data.new_empty(data.shape, dtype=dtype)


def all_codes() -> Tensor:
    """[2, 128] uint8 → every e4m3 code, both NaN among them."""
    return torch.arange(256, dtype=torch.int32).to(torch.uint8).view(2, 128).view(E4M3)


def _case(
    name: str, rows: int, columns: int, block: tuple[int, int],
    dtype: torch.dtype = torch.bfloat16, *, experts: int = 0, bench: bool | str = False,
) -> Case:  # fmt: skip
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows)
        shape = (experts, rows, columns) if experts else (rows, columns)
        x = torch.randn(shape, generator=rng)
        if block[0] == 0:  # one scale for all
            data, scale = (x * 100).to(E4M3), torch.tensor([[0.37]])
        else:
            data, scale, _, _ = quantize.reference(x, None, 1, *block, False, False)
        return data.to(device), scale.to(device), dtype

    count = float(max(experts, 1) * rows * columns)
    moved = count * (1 + dtype.itemsize)
    return Case(name, make, bytes=moved, tier="bitwise", bench=bench)


SQUARE = (BLOCK, BLOCK)
CASES = (
    Case("all codes", lambda d: (all_codes().to(d), torch.full((2, 1), 3e-3).to(d),
                                 torch.float32), tier="bitwise"),
    Case("all codes, bf16", lambda d: (all_codes().to(d), torch.ones(1, 1).to(d),
                                       torch.bfloat16), tier="bitwise"),
    _case("rows", 37, 256, (1, BLOCK)),
    _case("rows, odd, fp32", 19, 333, (1, BLOCK), torch.float32),
    _case("columns, odd", 333, 19, (BLOCK, 1)),
    _case("squares, odd", 200, 150, SQUARE),
    _case("squares, experts, fp16", 130, 140, SQUARE, torch.float16, experts=3),
    _case("one scale", 30, 70, (0, 0)),
    _case("no rows", 0, 256, (1, BLOCK)),
    _case("2048 × 2048", 2048, 2048, SQUARE, bench="cpu"),
    _case("7168 × 7168", 7168, 7168, SQUARE, bench="cuda"),
)  # fmt: skip

FP8_DEQUANTIZE = Op(
    "fp8_dequantize(Tensor data, Tensor scale, ScalarType dtype) -> Tensor",
    reference=reference,
    fake=_fake,
    cases=CASES,
    triton="r1kernels.fp8.triton.dequantize",
)
