"""What must compile of moe_experts and grouped_mm, with the parameters they are launched with.

Multiples of 16 are those of Qwen3-30B-A3B's experts, 128 × (2 · 768 × 2048), 8 of them a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from r1kernels.moe.triton.experts import SLOT_BLOCK
from r1kernels.moe.triton.experts_descriptors import gate_up_tiles
from r1kernels.moe.triton.experts_rows import COLUMNS, inner_gradient
from r1kernels.moe.triton.experts_tiles import gate_up_tile, inner_gradient_tile, weights_gradient
from r1kernels.moe.triton.grouped_mm_descriptors import product_tiles, weight_tiles
from r1kernels.moe.triton.grouped_mm_few import gate_up_few, product_few
from r1kernels.moe.triton.grouped_mm_tiles import product_tile, weight_tile
from r1kernels.triton import launch
from r1kernels.triton.build import AMD, MATRIX_UNIT, NVIDIA, Build

BITS = {"bf16": "16", "fp32": "32"}
EXPERTS, TOP_K = 128, 8
ELEMENTWISE = (weights_gradient, inner_gradient)
BY_BLOCKS = {
    90: r"wgmma\.mma_async[\s\S]*cp\.async\.bulk\.tensor",
    100: r"tcgen05\.mma[\s\S]*cp\.async\.bulk\.tensor",
}
FEW = dict.fromkeys(BY_BLOCKS, r"cp\.async\.bulk\.tensor")  # on whichever matrix unit

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
        expects=MATRIX_UNIT if dtype != "fp32" and kernel not in ELEMENTWISE else {},
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
    for weighted in (False, True):
        yield build(inner_gradient, target, dtype, COLUMNS, WEIGHTED=weighted)
    if dtype == "fp32":
        yield build(weights_gradient, target, dtype, SLOT_BLOCK)


def described(
    kernel: Any, target: int, parameters: dict[str, int], boxes: dict[str, Any],
    expects: dict[int, str] = BY_BLOCKS, **constexprs: Any,
) -> Build:  # fmt: skip
    """A build of a kernel that takes descriptors of these boxes; None is an argument left out."""
    made = build(kernel, target, "bf16", parameters, **constexprs)
    types = {
        name: None if box is None else f"tensordesc<bf16{list(box)}>" for name, box in boxes.items()
    }
    return replace(made, signature={**made.signature, **types}, expects=expects)


def by_blocks(target: int) -> Iterator[Build]:
    """The same products where descriptors load and store: boxes of matrices, or of some rows."""

    def sizes(name: str) -> tuple[dict[str, int], int, int, int]:
        tile = launch.table()[name][str(target)]["16"]
        return tile, tile["ROWS"], tile["COLUMNS"], tile["STEP"]

    tile, rows, columns, step = sizes("grouped_mm.product_blocks")
    boxes: dict[str, Any] = {"x_blocks": (rows, step), "out_blocks": (1, 1, rows, columns)}
    for transposed, box in ((False, (1, columns, step)), (True, (1, step, columns))):
        given = {**boxes, "weight_blocks": box}
        yield described(product_tiles, target, tile, given, TRANSPOSED=transposed)

    tile, rows, columns, step = sizes("grouped_mm.product_few")
    for transposed, box in ((False, (1, columns, step)), (True, (1, step, columns))):
        boxes = {"weight_blocks": box}
        yield described(product_few, target, tile, boxes, FEW, TRANSPOSED=transposed)

    tile, rows, columns, step = sizes("moe_experts.gate_up_few")
    boxes = {"gate_up_blocks": (2, columns // 2, step)}
    yield described(gate_up_few, target, tile, boxes, FEW, h=None)

    tile, rows, columns, step = sizes("grouped_mm.weight_blocks")
    boxes = {"left_blocks": (1, 1, step, rows), "right_blocks": (1, 1, step, columns)}
    yield described(weight_tiles, target, tile, {**boxes, "out_blocks": (1, rows, columns)})

    tile, rows, columns, step = sizes("moe_experts.gate_up_blocks")
    half = (1, 1, rows, columns // 2)
    boxes = {"x_blocks": (rows, step), "gate_up_blocks": (2, columns // 2, step)}
    boxes["activation_blocks"] = half
    for kept in (half, None):
        given = {**boxes, "gate_blocks": kept, "up_blocks": kept}
        yield described(gate_up_tiles, target, tile, given, **({} if kept else {"h": None}))


BUILDS = (
    *(each for target, dtype in product((*NVIDIA, AMD), BITS) for each in builds(target, dtype)),
    *(each for target in (90, 100) for each in by_blocks(target)),
)
