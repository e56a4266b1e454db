"""The weight gradients of all experts from FP8 tensors: one product, cut along its reduction."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.fp8 import gemm
from r1kernels.fp8.format import BLOCK, E4M3, FP8Tensor, blocks, check_tensor
from r1kernels.moe.grouped_mm import segments


def fp8_grouped_wgrad(
    left: FP8Tensor, right: FP8Tensor, offsets: Tensor, *, accumulate: Tensor | None = None
) -> Tensor:
    """out[e] = left[:, rows of e] · right[:, rows of e]ᵀ in float32, 0 for an expert without rows.

    Args:
        left: data [N, P], scale [N, P/128]: ``fp8_quantize(dy, both=True).transposed``.
        right: data [K, P], scale [K, P/128]: those of the layer's input.
        offsets: [E + 1] int32, from 0, never falling, multiples of 128 (``align=128`` of
            ``moe_sort``), so that no block belongs to two experts.
        accumulate: [E, N, K] float32, to which the products are added in place. It is returned.

    Returns:
        [E, N, K] float32.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    op = "fp8_grouped_wgrad"
    shapes = check.Shapes(op)
    for name, tensor, rows in (("left", left, "N"), ("right", right, "K")):
        check_tensor(op, name, tensor)
        shapes(f"{name}.data", tensor.data, f"{rows} P", (E4M3,))
        size, total = shapes.sizes[rows], shapes.sizes["P"]
        if total % BLOCK or tensor.scale.shape != (size, blocks(total)):
            raise ValueError(
                f"{op}: {name}: expected P in multiples of 128 and a scale of shape "
                f"[{rows}, P/128], got P = {total} and {list(tensor.scale.shape)}"
            )
        shapes(f"{name}.scale", tensor.scale, f"{rows} P/128", (torch.float32,))
    shapes("offsets", offsets, "E+1", (torch.int32,))
    if not len(offsets):
        raise ValueError(f"{op}: offsets: expected shape [E + 1], got [0]")
    given = left.data, left.scale, right.data, right.scale, offsets
    if accumulate is None:
        return FP8_GROUPED_WGRAD(*given)
    shapes.sizes["E"] = len(offsets) - 1
    shapes("accumulate", accumulate, "E N K", (torch.float32,))
    FP8_GROUPED_WGRAD_(accumulate, *given)
    return accumulate


def reference(
    left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor, offsets: Tensor
) -> Tensor:
    out = left_scale.new_zeros(len(offsets) - 1, left.shape[0], right.shape[0])
    for e, rows in segments(offsets):
        in_blocks = slice(rows.start // BLOCK, rows.stop // BLOCK)
        pair = left[:, rows], left_scale[:, in_blocks], right[:, rows], right_scale[:, in_blocks]
        out[e] = gemm.reference(*pair, None, torch.float32, False)
    return out


def _fake(
    left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor, offsets: Tensor
) -> Tensor:
    return left_scale.new_empty(offsets.shape[0] - 1, left.shape[0], right.shape[0])


def accumulate_reference(accumulate: Tensor, *given: Tensor) -> None:
    accumulate += reference(*given)


def _accumulate_fake(accumulate: Tensor, *given: Tensor) -> None:
    return None


def _validate(
    left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor, offsets: Tensor
) -> None:
    ends = offsets.tolist()
    ordered = ends[0] == 0 and all(a <= b for a, b in pairwise(ends)) and ends[-1] <= left.shape[1]
    if not ordered or any(end % BLOCK for end in ends):
        raise ValueError(
            f"fp8_grouped_wgrad: offsets: expected multiples of 128 from 0, never falling, at most "
            f"P = {left.shape[1]}; got {ends}"
        )


def _case(
    name: str, counts: tuple[int, ...], n: int, k: int, *, beyond: int = 0,
    bench: bool | str = False,
) -> Case:  # fmt: skip
    used = torch.tensor([0, *counts])
    offsets = ((used + BLOCK - 1) // BLOCK * BLOCK).cumsum(0).int()
    rows = int(offsets[-1])

    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + n + k)
        there = torch.zeros(rows + beyond, dtype=torch.bool)
        for start, count in zip(offsets.tolist(), counts, strict=False):
            there[start : start + count] = True
        given: list[Tensor] = []
        for size in (n, k):
            dense = torch.randn(size, rows + beyond, generator=rng) * there
            given += gemm.quantized(dense, gemm.ROWS)
        return *(t.to(device) for t in given), offsets.to(device)

    total = sum(counts)
    moved = float(total * (n + k) + 4 * len(counts) * n * k)
    return Case(name, make, flops=2.0 * total * n * k, bytes=moved, bench=bench)


CASES = (
    _case("uneven", (130, 0, 70, 256, 1, 0), 96, 128),
    _case("odd sizes", (130, 0, 70), 77, 141),
    _case("rows beyond", (3, 8, 0), 64, 32, beyond=256),
    _case("one expert", (300,), 130, 65),
    _case("no rows", (0, 0), 16, 24),
    _case("E 64, 96 rows each, 1024 × 1024", (96,) * 64, 1024, 1024, bench="cpu"),
    _case("4 × 8192, 4096 × 7168", (8192,) * 4, 4096, 7168, bench="cuda"),
)

FP8_GROUPED_WGRAD = Op(
    "fp8_grouped_wgrad(Tensor left, Tensor left_scale, Tensor right, Tensor right_scale, "
    "Tensor offsets) -> Tensor",
    reference=reference,
    fake=_fake,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.fp8.triton.grouped_wgrad",
)
FP8_GROUPED_WGRAD.compiled("cuda", guarded=True)
FP8_GROUPED_WGRAD_ = Op(
    "fp8_grouped_wgrad_(Tensor(a!) accumulate, Tensor left, Tensor left_scale, Tensor right, "
    "Tensor right_scale, Tensor offsets) -> ()",
    reference=accumulate_reference,
    fake=_accumulate_fake,
    validate=lambda accumulate, *given: _validate(*given),
    triton="r1kernels.fp8.triton.grouped_wgrad",
)
FP8_GROUPED_WGRAD_.compiled("cuda", guarded=True)
