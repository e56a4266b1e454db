"""What must compile of the products of FP8 tensors, with the parameters they are launched with.

Multiples of 16 are those of DeepSeek-V3's layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from r1kernels.fp8.triton.gemm import gemm_tile
from r1kernels.fp8.triton.grouped_gemm import grouped_tile
from r1kernels.fp8.triton.grouped_wgrad import wgrad_tile
from r1kernels.fp8.triton.tiles import Operand
from r1kernels.triton import launch
from r1kernels.triton.build import AMD, NVIDIA, Build

# sm_80 and gfx942 multiply codes as float16.
MATRIX_UNIT = {
    80: r"mma\.sync.*\.f16\.f16",
    89: r"mma\.sync.*\.e4m3\.e4m3",
    90: r"wgmma\.mma_async.*\.e4m3\.e4m3",
    100: r"tcgen05\.mma.*f8f6f4",
}
EXPERTS = 256
POINTERS = {"starts": "*i32", "ends": "*i32", "offsets": "*i32"}
UNALIGNED = ("tiles", "rows", "experts")


def operand(target: int | str, k_major: bool, each: int) -> Operand:
    """Of codes whose summed columns are contiguous, or whose rows are; ``each`` rows a scale."""
    is_bytes = target in (80, AMD) or (target == 90 and not k_major)
    strides = ("i32", 1) if k_major else (1, "i32")
    of_scale = (1, "i32") if each == 1 else strides
    return Operand("*u8" if is_bytes else "*fp8e4nv", *strides, "*fp32", *of_scale)


def build(
    kernel: Any, op: str, target: int | str, out: str, *, k_major: bool = True, **given: Any
) -> Build:
    kind = "squares" if given["Y_EACH"] == 128 and k_major else "others"
    parameters = launch.table()[f"{op}.{kind}"][str(target)]["8"]
    x, y = operand(target, True, 1), operand(target, k_major, given["Y_EACH"])
    known = {"X_EACH": 1, "EVEN": True, "ADD": False, "EXPERTS": EXPERTS, **given, **parameters}
    constexprs = {key: value for key, value in known.items() if key in kernel.arg_names}
    types = {"x": x, "y": y, "out": f"*{out}", **POINTERS}
    signature = {key: types.get(key, "i32") for key in kernel.arg_names if key not in constexprs}
    sides = [
        f"{side}.{field}"
        for side, each in (("x", x), ("y", y))
        for field in ("data", "row", "column", "scale")
        if getattr(each, field) != 1
    ]
    return Build(
        kernel,
        signature,
        constexprs,
        {key: value for key, value in parameters.items() if key not in constexprs},
        expects=MATRIX_UNIT,
        targets=(target,),
        aligned=(*sides, *(key for key in signature if key not in UNALIGNED)),
    )


def builds(target: int | str) -> Iterator[Build]:
    """The products of a linear layer, then of experts: forward, dgrad, wgrad; an odd one."""
    one = gemm_tile, "fp8_gemm", target
    yield build(*one, "bf16", Y_EACH=128, bias=None)
    yield build(*one, "bf16", Y_EACH=128, bias=None, k_major=False)
    yield build(*one, "fp32", Y_EACH=1, bias=None, ADD=True)
    yield build(*one, "fp32", Y_EACH=1, bias=None, EVEN=False)
    grouped = grouped_tile, "fp8_grouped_gemm", target
    yield build(*grouped, "bf16", Y_EACH=128)
    yield build(*grouped, "bf16", Y_EACH=128, k_major=False)
    yield build(*grouped, "bf16", Y_EACH=1)
    yield build(wgrad_tile, "fp8_grouped_wgrad", target, "fp32", Y_EACH=1, ADD=True)


BUILDS = tuple(each for target in (*NVIDIA, AMD) for each in builds(target))
