"""A product of FP8 tensors for each expert: the rows of each with weights of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.fp8 import gemm
from r1kernels.fp8.format import BLOCK, E4M3, FP8Tensor, check_scale, check_tensor


def fp8_grouped_gemm(
    a: FP8Tensor,
    b: FP8Tensor,
    *,
    offsets: Tensor | None = None,
    counts: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    transposed: bool = False,
) -> Tensor:
    """Each expert's rows of a times its b[e]ᵀ, or b[e] if ``transposed``; 0 for all other rows.

    Contiguous: a is [P, K] and expert e has the rows from offsets[e] on, up to offsets[e + 1] or,
    with counts, counts[e] of them (the rest being padding). Masked: a is [E, M, K], without
    offsets, and expert e has the first counts[e] rows of a[e].

    Args:
        a: data and scale, by blocks of (1, 128), by rows, or one for all (see ``fp8_gemm``).
        b: [E, N, K], or if ``transposed`` [E, K, N], with a scale for each expert.
        offsets: [E + 1] int32, from 0, never falling. The CUDA kernels ask for multiples of 128.
        counts: [E] int32.
        out_dtype: bfloat16, float32 or float16.

    Returns:
        [P, N], or [E, M, N] of a masked product.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    op = "fp8_grouped_gemm"
    shapes = check.Shapes(op)
    masked = offsets is None
    check_tensor(op, "a", a)
    check_tensor(op, "b", b)
    check.flag(op, "transposed", transposed)
    shapes("b.data", b.data, "E K N" if transposed else "E N K", (E4M3,))
    if masked and a.data.dim() == 2:
        raise ValueError(f"{op}: offsets: expected a tensor [E + 1] with a [P, K], got None")
    shapes("a.data", a.data, "E M K" if masked else "P K", (E4M3,))
    experts = shapes.sizes["E"]
    check_scale(op, "b.scale", b.scale, tuple(b.data.shape), -2 if transposed else -1)
    check_scale(op, "a.scale", a.scale, tuple(a.data.shape))
    if counts is not None:
        shapes("counts", counts, "E", (torch.int32,))
    if offsets is not None:
        shapes.sizes["E+1"], shapes.bound_by["E+1"] = experts + 1, "b"
        shapes("offsets", offsets, "E+1", (torch.int32,))
        starts = offsets[:-1]
        ends = offsets[1:] if counts is None else starts + counts
        data, scale = a.data, a.scale
    elif counts is None:
        raise ValueError(f"{op}: counts: expected a tensor [E] without offsets, got None")
    else:
        rows = a.data.shape[1]
        starts = torch.arange(experts, dtype=torch.int32, device=counts.device) * rows
        ends = starts + counts
        data, scale = a.data.flatten(0, 1), a.scale.flatten(0, 1)
        if scale.shape[0] not in (data.shape[0], 1):  # squares end where an expert's rows do
            raise ValueError(f"{op}: a.scale: expected one by rows of a masked a, got squares")
    if out_dtype not in gemm.OUTPUTS:
        raise TypeError(f"{op}: out_dtype: expected a float dtype of 2 or 4 bytes, got {out_dtype}")
    out = FP8_GROUPED_GEMM(data, scale, b.data, b.scale, starts, ends, out_dtype, transposed)
    return out.unflatten(0, a.data.shape[:2]) if masked else out


def reference(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, starts: Tensor, ends: Tensor,
    out_dtype: torch.dtype, transposed: bool,
) -> Tensor:  # fmt: skip
    exact = a_scale.dtype == torch.float64
    dtype = torch.float64 if exact else out_dtype
    out = a.new_zeros(a.shape[0], b.shape[2 if transposed else 1], dtype=dtype)
    by_row = a_scale.expand(a.shape[0], -1)
    for e, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if start < end:
            rows = slice(start, end)
            pair = a[rows], by_row[rows], b[e], b_scale[e]
            out[rows] = gemm.reference(*pair, None, out_dtype, transposed)
    return out


def _fake(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, starts: Tensor, ends: Tensor,
    out_dtype: torch.dtype, transposed: bool,
) -> Tensor:  # fmt: skip
    return a.new_empty(a.shape[0], b.shape[2 if transposed else 1], dtype=out_dtype)


def _validate(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, starts: Tensor, ends: Tensor,
    out_dtype: torch.dtype, transposed: bool,
) -> None:  # fmt: skip
    before = 0
    for e, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if not before <= start <= end <= a.shape[0]:
            raise ValueError(
                f"fp8_grouped_gemm: offsets, counts: rows of expert {e}: expected {before} ≤ first "
                f"≤ end ≤ {a.shape[0]}, got {start} to {end}"
            )
        before = end


def _case(
    name: str, counts: tuple[int, ...], n: int, k: int, out: torch.dtype = torch.bfloat16, *,
    align: int = 1, room: int = 0, beyond: int = 0, transposed: bool = False,
    of_a: tuple[int, int] = gemm.ROWS, of_b: tuple[int, int] = gemm.SQUARES,
    bench: bool | str = False,
) -> Case:  # fmt: skip
    """``room``: of each expert, masked; else each one's rows begin at a multiple of ``align``."""
    used = torch.tensor(counts, dtype=torch.int32)
    span = torch.full_like(used, room) if room else (used + align - 1) // align * align
    starts = (span.cumsum(0) - span).int()
    rows = int(span.sum()) + beyond

    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + n + k)
        a = torch.randn(rows, k, generator=rng)
        b = torch.randn(len(counts), n, k, generator=rng) / k**0.5
        a_data, a_scale = gemm.quantized(a, of_a)
        b_data, b_scale = gemm.quantized(b.mT.contiguous() if transposed else b, of_b)
        tensors = (a_data, a_scale, b_data, b_scale, starts, starts + used)
        return *(t.to(device) for t in tensors), out, transposed

    total = sum(counts)
    touched = sum(count > 0 for count in counts)
    moved = float(total * k + touched * n * k + rows * n * out.itemsize)
    return Case(name, make, flops=2.0 * total * n * k, bytes=moved, bench=bench)


UNEVEN = (5, 0, 70, 1, 33, 0)
CASES = (
    _case("contiguous", UNEVEN, 256, 384),
    _case("contiguous, aligned", UNEVEN, 256, 384, align=BLOCK),
    _case("masked", UNEVEN, 256, 128, room=72),
    _case("odd, fp32", UNEVEN, 141, 203, torch.float32),
    _case("dgrad", UNEVEN, 384, 256, transposed=True),
    _case("dgrad, odd, fp32, aligned", UNEVEN, 203, 141, torch.float32, align=BLOCK,
          transposed=True),
    _case("row-wise", UNEVEN, 130, 256, of_a=gemm.ROW_WISE, of_b=gemm.ROW_WISE),
    _case("per tensor", UNEVEN, 130, 256, of_a=gemm.WHOLE, of_b=gemm.WHOLE),
    _case("rows beyond", (3, 8, 0), 64, 128, beyond=20),
    _case("one row", (0, 0, 1, 0), 96, 256),
    _case("no rows", (0, 0), 16, 128),
    _case("nothing but rows beyond", (0, 0), 16, 128, beyond=5),
    _case("E 64, 96 rows each, 1024 × 1024", (96,) * 64, 1024, 1024, bench="cpu"),
    _case("4 × 8192, 4096 × 7168", (8192,) * 4, 4096, 7168, bench="cuda"),
    _case("4 × 8192, 7168 × 2048", (8192,) * 4, 7168, 2048, bench="cuda"),
)  # fmt: skip

FP8_GROUPED_GEMM = Op(
    "fp8_grouped_gemm(Tensor a, Tensor a_scale, Tensor b, Tensor b_scale, Tensor starts, "
    "Tensor ends, ScalarType out_dtype, bool transposed) -> Tensor",
    reference=reference,
    fake=_fake,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.fp8.triton.grouped_gemm",
)
FP8_GROUPED_GEMM.compiled("cuda", guarded=True)
