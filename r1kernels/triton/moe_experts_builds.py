"""What must compile of moe_experts and grouped_mm, with the parameters they are launched with.

Multiples of 16 are those of Qwen3-30B-A3B's experts, 128 × (2 · 768 × 2048), 8 of them a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from r1kernels.triton import launch
from r1kernels.triton.build import AMD, MATRIX_UNIT, NVIDIA, Build
from r1kernels.triton.grouped_mm_tiles import product_tile, weight_tile
from r1kernels.triton.moe_experts import SLOT_BLOCK
from r1kernels.triton.moe_experts_tiles import gate_up_tile, inner_gradient_tile, weights_gradient

BITS = {"bf16": "16", "fp32": "32"}
EXPERTS, TOP_K = 128, 8

INDICES = ("offsets", "gather", "inverse", "left_lines", "right_lines")
SUMS = ("weights", "dots", "dweights")
SCALARS = ("tiles", "rows", "experts", "depth", "width", "height", "inner", "slots", "parts")
UNALIGNED = ("tiles", "rows", "slots", "parts")  # they go with the number of rows, or are small


def type_of(argument: str, dtype: str) -> str:
    if argument in SCALARS:
        return "i32"
    return "*" + ("i32" if argument in INDICES else "fp32" if argument in SUMS else dtype)


def build(
    kernel: Any, target: int | str, dtype: str, parameters: dict[str, int], **constexprs: Any
) -> Build:
    names = kernel.arg_names
    known = {"EVEN": True, "EXPERTS": EXPERTS, "TOP_K": TOP_K}
    given = {**{name: known[name] for name in known if name in names}, **parameters, **constexprs}
    signature = {name: type_of(name, dtype) for name in names if name not in given}
    return Build(
        kernel,
        signature,
        {name: value for name, value in given.items() if name in names},
        {name: value for name, value in given.items() if name not in names},
        expects=MATRIX_UNIT if dtype != "fp32" and kernel is not weights_gradient else {},
        targets=(target,),
        aligned=tuple(name for name in signature if name not in UNALIGNED),
    )


def builds(target: int | str, dtype: str) -> Iterator[Build]:
    def tile(kernel: Any, name: str, **constexprs: Any) -> Build:
        parameters = launch.table()[name][str(target)][BITS[dtype]]
        return build(kernel, target, dtype, parameters, **constexprs)

    yield tile(product_tile, "grouped_mm.product", TRANSPOSED=False)
    yield tile(product_tile, "grouped_mm.product", TRANSPOSED=True)
    yield tile(weight_tile, "grouped_mm.weight", left_lines=None, right_lines=None)
    yield tile(weight_tile, "moe_experts.weight", left_lines=None)
    yield tile(weight_tile, "moe_experts.weight", right_lines=None)
    yield tile(gate_up_tile, "moe_experts.gate_up")
    yield tile(inner_gradient_tile, "moe_experts.inner_gradient")
    if dtype == "fp32":
        yield build(weights_gradient, target, dtype, SLOT_BLOCK)


BUILDS = tuple(
    each for target, dtype in product((*NVIDIA, AMD), BITS) for each in builds(target, dtype)
)
