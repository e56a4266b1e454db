"""SwiGLU between the two FP8 products of an expert, quantized as it is made, and its gradient.

The gate-up product h is kept in 16 or 32 bits and the activation made again from it in the backward
pass, where it is needed along the rows only, times the weight of each row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.fp8 import quantize
from r1kernels.fp8.format import BLOCK, E4M3, SCALE_FORMATS, FP8Tensor, blocks, quantize_blocks


def fp8_swiglu(h: Tensor, *, scale_format: str = "float") -> FP8Tensor:
    """fp8_quantize(silu(gate)·up) of h = [gate, up], in blocks of (1, 128).

    Args:
        h: [P, 2I], float32, bfloat16 or float16.
        scale_format: see ``fp8_quantize``.

    Returns:
        data [P, I], scale [P, ⌈I/128⌉]. The activation is made in float32 and not rounded in
        between; exponentials differ in their last bit, so codes may differ by one step between
        backends.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    _check_h("fp8_swiglu", h)
    check.choice("fp8_swiglu", "scale_format", scale_format, SCALE_FORMATS)
    return FP8Tensor(*FP8_SWIGLU(h, scale_format == "ue8m0"))


def fp8_swiglu_backward(
    h: Tensor, da: Tensor, weights: Tensor, *, scale_format: str = "float", frozen: bool = False
) -> tuple[FP8Tensor, FP8Tensor, Tensor]:
    """What the products before and after need of y = w·down(silu(gate)·up), row by row.

    Args:
        h: [P, 2I], float32, bfloat16 or float16.
        da: [P, I], dtype of h: the gradient of the activation as it would be with w = 1.
        weights: [P] float32, w; 0 for padding.
        scale_format: see ``fp8_quantize``.
        frozen: the weights of the experts are not trained: leave out what only they need.

    Returns:
        (dh, a, dw): the gradient of h, [P, 2I], in blocks of (1, 128) and, unless ``frozen``, its
        transpose (``data_t``, ``scale_t``); w·silu(gate)·up as transpose only, data [I, P'] and
        scale [I, P'/128] (empty if ``frozen``); dw [P] float32 = ⟨da, silu(gate)·up⟩.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    op = "fp8_swiglu_backward"
    shapes = _check_h(op, h)
    check.flag(op, "frozen", frozen)
    shapes.sizes["I"] = h.shape[1] // 2
    shapes("da", da, "P I", (h.dtype,))
    shapes("weights", weights, "P", (torch.float32,))
    check.choice(op, "scale_format", scale_format, SCALE_FORMATS)
    found = FP8_SWIGLU_BACKWARD(h, da, weights, scale_format == "ue8m0", not frozen)
    dh = FP8Tensor(*found[:4]) if not frozen else FP8Tensor(*found[:2])
    return dh, FP8Tensor(*found[4:6]), found[6]


def _check_h(op: str, h: Tensor) -> check.Shapes:
    shapes = check.Shapes(op)
    shapes("h", h, "P 2I", quantize.SOURCES)
    if h.shape[1] % 2:
        raise ValueError(f"{op}: h: expected an even number of columns, got {h.shape[1]}")
    return shapes


def halves(h: Tensor) -> tuple[Tensor, Tensor]:
    """(gate, up) of [P, 2I] in float32, or float64 as it is."""
    gate, up = (h if h.dtype == torch.float64 else h.float()).chunk(2, -1)
    return gate, up


def reference(h: Tensor, power_of_two: bool) -> tuple[Tensor, Tensor]:
    gate, up = halves(h)
    data, scale = quantize_blocks((gate * gate.sigmoid() * up)[None], 1, BLOCK, power_of_two)
    return data[0], scale[0]


def _fake(h: Tensor, power_of_two: bool) -> tuple[Tensor, Tensor]:
    rows, inner = h.shape[0], h.shape[1] // 2
    return (
        h.new_empty(rows, inner, dtype=E4M3),
        h.new_empty(rows, blocks(inner), dtype=torch.float32),
    )


def backward_reference(
    h: Tensor, da: Tensor, weights: Tensor, power_of_two: bool, both: bool
) -> tuple[Tensor, ...]:
    gate, up = halves(h)
    s = gate.sigmoid()
    silu = gate * s
    d = da.to(gate.dtype)
    dw = (d * silu * up).sum(1)
    d = d * weights[:, None]
    dh = torch.cat([d * up * s * (1 + gate * (1 - s)), d * silu], 1)
    data, scale = quantize_blocks(dh[None], 1, BLOCK, power_of_two)
    of_dh = quantize.transposed(dh if both else None, power_of_two, dh)
    of_a = quantize.transposed(silu * up * weights[:, None] if both else None, power_of_two, dh)
    return data[0], scale[0], *of_dh, *of_a, dw


def _backward_fake(
    h: Tensor, da: Tensor, weights: Tensor, power_of_two: bool, both: bool
) -> tuple[Tensor, ...]:
    rows, width = h.shape
    dh_data, dh_scale = quantize.transposed_shapes(rows, width, both)
    a_data, a_scale = quantize.transposed_shapes(rows, width // 2, both)
    return (
        h.new_empty(rows, width, dtype=E4M3),
        h.new_empty(rows, blocks(width), dtype=torch.float32),
        h.new_empty(dh_data, dtype=E4M3),
        h.new_empty(dh_scale, dtype=torch.float32),
        h.new_empty(a_data, dtype=E4M3),
        h.new_empty(a_scale, dtype=torch.float32),
        weights.new_empty(rows),
    )


def _case(
    name: str, rows: int, inner: int, dtype: torch.dtype = torch.bfloat16, *,
    ue8m0: bool = False, bench: bool | str = False,
) -> Case:  # fmt: skip
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(rows + inner)
        return torch.randn(rows, 2 * inner, generator=rng).mul_(2).to(device, dtype), ue8m0

    moved = float(rows * inner * (2 * dtype.itemsize + 1))
    return Case(name, make, bytes=moved, tier="codes", bench=bench)


FP32 = torch.float32
CASES = (
    _case("bf16", 37, 256),
    _case("fp32, odd", 21, 141, FP32),
    _case("fp16, ue8m0", 21, 192, torch.float16, ue8m0=True),
    _case("one row", 1, 320),
    _case("no rows", 0, 128),
    _case("P 2048, I 1024", 2048, 1024, bench="cpu"),
    _case("P 32768, I 2048", 32768, 2048, bench="cuda"),
)


def _backward_case(case: Case, both: bool = True) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        h, ue8m0 = case.make(device)
        rng = torch.Generator().manual_seed(1)
        da = torch.randn(h.shape[0], h.shape[1] // 2, generator=rng).to(h)
        weights = torch.rand(h.shape[0], generator=rng).to(device)
        weights[::5] = 0
        return h, da, weights, ue8m0, both

    name = case.name + ("" if both else ", frozen")
    return Case(name, make, bytes=4 * case.bytes, tier="codes", bench=case.bench)


FP8_SWIGLU = Op(
    "fp8_swiglu(Tensor h, bool power_of_two) -> (Tensor data, Tensor scale)",
    reference=reference,
    fake=_fake,
    cases=CASES,
    triton="r1kernels.fp8.triton.swiglu",
)
FP8_SWIGLU_BACKWARD = Op(
    "fp8_swiglu_backward(Tensor h, Tensor da, Tensor weights, bool power_of_two, bool both) "
    "-> (Tensor data, Tensor scale, Tensor data_t, Tensor scale_t, Tensor a_t, Tensor a_scale_t, "
    "Tensor dweights)",
    reference=backward_reference,
    fake=_backward_fake,
    cases=(
        *(_backward_case(case) for case in CASES),
        _backward_case(_case("tall", 300, 130)),
        _backward_case(CASES[0], both=False),
    ),
    triton="r1kernels.fp8.triton.swiglu",
)
