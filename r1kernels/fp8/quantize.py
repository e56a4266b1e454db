"""Floats to FP8 codes and block scales; with a gather, those of the rows of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.fp8.format import (
    BLOCK,
    E4M3,
    SCALE_FORMATS,
    FP8Tensor,
    blocks,
    new_row_scale,
    quantize_blocks,
)
from r1kernels.moe import sort

BLOCKS = ((1, BLOCK), (BLOCK, 1), (BLOCK, BLOCK))
SOURCES = (torch.float32, torch.bfloat16, torch.float16)


def fp8_quantize(
    x: Tensor,
    *,
    block: tuple[int, int] = (1, BLOCK),
    scale_format: str = "float",
    both: bool = False,
    gather: Tensor | None = None,
    top_k: int = 1,
) -> FP8Tensor:
    """Codes rne(x/s), clamped to ±448, and scales s = max |x|/448 of each block.

    The quotient is x·(1/s), each step rounded once in float32, so bytes are the same on every
    backend. NaN and ±inf become NaN and do not count for s; s is at least 2^-126.

    Args:
        x: [R, C] or [E, R, C], float32, bfloat16 or float16.
        block: (1, 128) for activations and gradients, (128, 128) for weights, (128, 1) for what is
            summed over its rows. The last block of a row or column may be smaller.
        scale_format: "float": s as it is; "ue8m0": rounded up to a power of two.
        both: give xᵀ in blocks of (1, 128) too, made in the same pass: what the weight gradient
            needs. Only with block (1, 128) and x of two dimensions.
        gather: [P] int32, of ``moe_route`` or ``moe_sort``: row p is x[gather[p] // top_k], zeros
            where it is −1, without making it first. Only with block (1, 128).
        top_k: choices of each token, with ``gather``.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    if not isinstance(x, Tensor) or x.dim() not in (2, 3):
        raise (ValueError if isinstance(x, Tensor) else TypeError)(
            f"fp8_quantize: x: expected shape [R, C] or [E, R, C], got {check.described(x)}"
        )
    shapes = check.Shapes("fp8_quantize")
    shapes("x", x, "R C" if x.dim() == 2 else "E R C", SOURCES)
    check.choice("fp8_quantize", "scale_format", scale_format, SCALE_FORMATS)
    if not isinstance(block, (tuple, list)) or tuple(block) not in BLOCKS:
        known = ", ".join(map(str, BLOCKS))
        hint = " (rows and columns of a block)" if isinstance(block, int) else ""
        raise ValueError(
            f"fp8_quantize: block: expected one of {known}; got {check.described(block)}{hint}"
        )
    check.flag("fp8_quantize", "both", both)
    if (both or gather is not None) and (tuple(block) != (1, BLOCK) or x.dim() != 2):
        name = "both" if both else "gather"
        raise ValueError(
            f"fp8_quantize: {name}: expected block (1, 128) and x [R, C], got block {tuple(block)} "
            f"and x {list(x.shape)}"
        )
    if gather is not None:
        shapes("gather", gather, "P", (torch.int32,))
    check.between("fp8_quantize", "top_k", top_k, 1, 2**31 - 1)
    found = FP8_QUANTIZE(x, gather, top_k, *block, scale_format == "ue8m0", both)
    return FP8Tensor(*found) if both else FP8Tensor(*found[:2])


def reference(
    x: Tensor, gather: Tensor | None, top_k: int, rows: int, columns: int,
    power_of_two: bool, both: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    x = x.float()
    if gather is not None:
        x = gathered(x, gather, top_k)
    data, scale = quantize_blocks(x if x.dim() == 3 else x[None], rows, columns, power_of_two)
    if x.dim() == 3:
        return data, scale, *transposed(None, power_of_two, x)
    data_t, scale_t = transposed(x if both else None, power_of_two, x)
    scale = laid_out(scale[0]) if rows == 1 else scale[0]
    return data[0], scale, data_t, laid_out(scale_t) if both else scale_t


def laid_out(scale: Tensor) -> Tensor:
    """Scales of rows as kernels make them where they are: see ``new_row_scale``."""
    return new_row_scale(scale, *scale.shape).copy_(scale) if scale.is_cuda else scale


def gathered(x: Tensor, gather: Tensor, top_k: int) -> Tensor:
    if not len(x):
        return x.new_zeros(len(gather), x.shape[1])
    return x[gather.clamp(min=0) // top_k].masked_fill_(gather[:, None] < 0, 0)


def transposed(x: Tensor | None, power_of_two: bool, like: Tensor) -> tuple[Tensor, Tensor]:
    """xᵀ of [R, C] in blocks of (1, 128), R rounded up to 128; empty ones for None."""
    if x is None:
        return like.new_empty(0, 0, dtype=E4M3), like.new_empty(0, 0, dtype=torch.float32)
    wide = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[0] % BLOCK)).T
    data, scale = quantize_blocks(wide[None], 1, BLOCK, power_of_two)
    return data[0], scale[0]


def transposed_shapes(rows: int, columns: int, both: bool) -> tuple[tuple[int, int], ...]:
    if not both:
        return (0, 0), (0, 0)
    return (columns, blocks(rows) * BLOCK), (columns, blocks(rows))


def empty_transposed(x: Tensor, rows: int, columns: int, both: bool) -> tuple[Tensor, Tensor]:
    """What ``both`` adds for a tensor [rows, columns] where x is, without values."""
    data, scale = transposed_shapes(rows, columns, both)
    scales = new_row_scale(x, *scale) if both else x.new_empty(scale, dtype=torch.float32)
    return x.new_empty(data, dtype=E4M3), scales


def _fake(
    x: Tensor, gather: Tensor | None, top_k: int, rows: int, columns: int,
    power_of_two: bool, both: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    *lead, height, width = x.shape
    if gather is not None:
        height = gather.shape[0]
    if lead or rows > 1:
        sizes = (*lead, blocks(height, rows), blocks(width, columns))
        scale = x.new_empty(sizes, dtype=torch.float32)
    else:
        scale = new_row_scale(x, height, blocks(width, columns))
    data = x.new_empty(*lead, height, width, dtype=E4M3)
    return data, scale, *empty_transposed(x, height, width, both)


def _validate(
    x: Tensor, gather: Tensor | None, top_k: int, rows: int, columns: int,
    power_of_two: bool, both: bool,
) -> None:  # fmt: skip
    if (rows, columns) not in BLOCKS:
        raise ValueError(f"fp8_quantize: block: expected one of {BLOCKS}, got {(rows, columns)}")
    check.between("fp8_quantize", "top_k", top_k, 1, 2**31 - 1)
    if gather is not None:
        check.in_range("fp8_quantize", "gather", gather, x.shape[0] * top_k, ignore=-1)


def strange(x: Tensor) -> Tensor:
    """Rows of what rounding must get right: zeros, NaN, infinities, subnormals, extremes."""
    x[1] = 0
    x[2, ::7], x[2, 3], x[2, 5] = torch.nan, torch.inf, -torch.inf
    x[3] *= 1e-42
    x[4] *= 1e37
    x[5, ::2] = 2.0**-30
    x[6, :40] = torch.arange(40) / 1024 + 447  # ties and saturation
    x[7] = torch.nan
    x[8] = -0.0
    return x


def _case(
    name: str, rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, *,
    block: tuple[int, int] = (1, BLOCK), ue8m0: bool = False, both: bool = False,
    experts: int = 0, gathered: int = 0, odd_values: bool = False, bench: bool | str = False,
) -> Case:  # fmt: skip
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + columns)
        shape = (experts, rows, columns) if experts else (rows, columns)
        x = torch.randn(shape, generator=rng) * torch.randn(rows, 1, generator=rng).exp()
        x = (strange(x) if odd_values else x).to(device, dtype)
        gather, top_k = None, 1
        if gathered:
            top_k = 3
            ids = torch.rand(rows, gathered, generator=rng).argsort(1)[:, :top_k]
            gather = sort.reference(ids, gathered, BLOCK)[2].to(device)
        return x, gather, top_k, *block, ue8m0, both

    count = float(max(experts, 1) * rows * columns)
    moved = count * (dtype.itemsize + (2 if both else 1))
    return Case(name, make, bytes=moved, tier="bitwise", bench=bench)


FP32, FP16 = torch.float32, torch.float16
CASES = (
    _case("rows", 37, 256),
    _case("rows, ue8m0", 37, 256, ue8m0=True),
    _case("rows, fp32, odd", 19, 333, FP32),
    _case("rows, fp16", 19, 160, FP16),
    _case("rows, strange values", 20, 300, odd_values=True),
    _case("rows, strange values, fp32, ue8m0", 20, 300, FP32, odd_values=True, ue8m0=True),
    _case("both", 256, 192, both=True),
    _case("both, odd, ue8m0", 141, 77, both=True, ue8m0=True),
    _case("both, strange values, fp32", 150, 130, FP32, both=True, odd_values=True),
    _case("columns", 300, 70, block=(BLOCK, 1)),
    _case("columns, fp32, strange values", 140, 70, FP32, block=(BLOCK, 1), odd_values=True),
    _case("squares", 256, 384, block=(BLOCK, BLOCK)),
    _case("squares, fp32, odd, ue8m0", 200, 150, FP32, block=(BLOCK, BLOCK), ue8m0=True),
    _case("squares, experts", 130, 140, block=(BLOCK, BLOCK), experts=3),
    _case("gather", 40, 160, gathered=5),
    _case("gather, both", 40, 160, gathered=5, both=True),
    _case("one row", 1, 512),
    _case("no rows", 0, 256, both=True),
    _case("2048 × 2048", 2048, 2048, bench="cpu"),
    _case("2048 × 2048, both", 2048, 2048, both=True, bench="cpu"),
    _case("2048 × 2048, squares, fp32", 2048, 2048, FP32, block=(BLOCK, BLOCK), bench="cpu"),
    _case("4096 × 7168", 4096, 7168, bench="cuda"),
    _case("4096 × 7168, both", 4096, 7168, both=True, bench="cuda"),
    _case("7168 × 7168, squares, fp32", 7168, 7168, FP32, block=(BLOCK, BLOCK), bench="cuda"),
)

FP8_QUANTIZE = Op(
    "fp8_quantize(Tensor x, Tensor? gather, SymInt top_k, int rows, int columns, "
    "bool power_of_two, bool both) "
    "-> (Tensor data, Tensor scale, Tensor data_t, Tensor scale_t)",
    reference=reference,
    fake=_fake,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.fp8.triton.quantize",
)


def _by_rows(
    x: Tensor, gather: Tensor | None, top_k: int, rows: int, columns: int,
    power_of_two: bool, both: bool,
) -> bool | str:  # fmt: skip
    """Whether the CUDA kernel takes these arguments."""
    return (x.dim() == 2 and rows == 1) or "takes a matrix in blocks of (1, 128)"


FP8_QUANTIZE.compiled("cuda", when=_by_rows, guarded=True)
