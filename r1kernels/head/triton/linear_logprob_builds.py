"""What must compile of linear_logprob: its kernels with the parameters that they are launched with.

Multiples of 16 are those of the headline case, 8192 rows × 4096 × 151936.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from r1kernels.head.triton.linear_logprob import BIAS_BLOCK, EXACT, ORDER_BLOCK, ROW_BLOCK
from r1kernels.head.triton.linear_logprob_gradients import bias_block, hidden_tile, weight_tile
from r1kernels.head.triton.linear_logprob_order import order_rows, ordered_row, scaled_row
from r1kernels.head.triton.linear_logprob_tiles import forward_row, forward_tile, gradient_tile
from r1kernels.triton import launch
from r1kernels.triton.build import AMD, MATRIX_UNIT, NVIDIA, Build

BITS = {"bf16": "16", "fp32": "32"}
TMA = {90: r"(?s)wgmma\.mma_async.*cp\.async\.bulk|cp\.async\.bulk.*wgmma\.mma_async"}
TMA[100] = TMA[90].replace("wgmma\\.mma_async", "tcgen05\\.mma")

FLOATS = ("hidden", "weight", "bias", "kept", "shares", "ordered", "scaled")
FLOATS += ("dhidden", "dweight", "dbias")
INDICES = ("order", "counts", "blocks", "targets")
SCALARS = ("start", "size", "columns", "width", "depth", "first_column", "last_column", "kept_rows")
SCALARS += ("shares_stride", "shares_lines", "kept_stride")
WIDE = ("ignore_index", "here", "end")

UNALIGNED = ("logit_scale", "softcap", "absent_logit", "ignore_index", "here")
UNALIGNED += ("start", "size", "shares_lines", "kept_rows", "last_column")

EVERYTHING: frozenset[str] = frozenset()
NOT_KEPT = frozenset({"kept", "anchors"})
OPTIONS = frozenset({"bias", "temperature", "softcap", "dots", "entropy", "dentropy"})

# Blocks of what goes to a kernel as a tensor descriptor, by its parameters.
BLOCKS = {
    "forward_tile": {
        "hidden": ("ROWS", "STEP"), "weight": ("COLUMNS", "STEP"), "shares": ("ROWS", "PART"),
    },
    "gradient_tile": {"hidden": ("ROWS", "STEP"), "weight": ("COLUMNS", "STEP")},
    "hidden_tile": {"shares": ("ROWS", "STEP"), "weight": ("STEP", "COLUMNS")},
    "weight_tile": {
        "shares": ("STEP", "ROWS"), "scaled": ("STEP", "COLUMNS"), "dweight": ("ROWS", "COLUMNS"),
    },
}  # fmt: skip


def type_of(argument: str, dtype: str) -> str:
    if argument in ("logit_scale", "softcap", "absent_logit"):
        return "fp32"
    if argument in SCALARS:
        return "i32"
    if argument in WIDE:
        return "i64"
    kinds = {FLOATS: dtype, INDICES: "i32", ("target",): "i64", ("keep",): "u1", ("buffer",): "u8"}
    return "*" + next((kind for names, kind in kinds.items() if argument in names), "fp32")


def parameters_of(target: int | str, dtype: str, kernel: str) -> dict[str, int]:
    return launch.table()[f"linear_logprob.{kernel}"][str(target)][BITS[dtype]]


def build(
    kernel: Any,
    target: int | str,
    dtype: str,
    parameters: dict[str, int],
    absent: frozenset[str] = EVERYTHING,
    **constexprs: Any,
) -> Build:
    """One build; arguments named in ``absent`` are None."""
    names = getattr(kernel, "jit", kernel).arg_names
    given = {**parameters, **constexprs, **{name: None for name in absent if name in names}}
    signature = {name: type_of(name, dtype) for name in names if name not in given}
    tma = parameters.get("TMA")
    for name, (rows, columns) in BLOCKS.get(kernel.__name__, {}).items() if tma else ():
        signature[name] = f"tensordesc<{dtype}[{parameters[rows]}, {parameters[columns]}]>"
    multiplies = dtype != "fp32" and kernel.__name__.endswith("_tile")
    return Build(
        kernel,
        signature,
        {name: value for name, value in given.items() if name in names},
        {name: value for name, value in given.items() if name not in names} | EXACT,
        expects=(TMA if tma else MATRIX_UNIT) if multiplies else {},
        targets=(target,),
        aligned=tuple(
            name
            for name, kind in signature.items()
            if name not in UNALIGNED and not kind.startswith("tensordesc")
        ),
    )


def builds(target: int | str, dtype: str, aligned: bool) -> Iterator[Build]:
    def tile(kernel: Any, name: str, *absent: Any, **constexprs: Any) -> Build:
        parameters = parameters_of(target, dtype, name + "_blocks" * aligned)
        parameters = {"TMA": int(aligned), **parameters}
        return build(kernel, target, dtype, parameters, *absent, **constexprs)

    if aligned and (dtype != "bf16" or target not in TMA):
        return
    # Shares that were kept and an upstream gradient of the entropy never meet.
    yield tile(forward_tile, "capped_logits", EVEN=True)
    yield tile(gradient_tile, "capped_logits", NOT_KEPT, EVEN=True)
    yield tile(hidden_tile, "hidden", frozenset({"partial"}), FIRST=True, LAST=True, EVEN=True)
    yield tile(weight_tile, "weight")
    if dtype == "fp32":
        return
    for absent, kept in ((frozenset({"softcap"}), NOT_KEPT), (OPTIONS, EVERYTHING)):
        yield tile(forward_tile, "logits", absent, EVEN=True)
        yield tile(gradient_tile, "logits", absent | kept, EVEN=True)
    yield tile(hidden_tile, "hidden", FIRST=False, LAST=False, EVEN=True)
    if aligned:
        return
    tile_of = parameters_of(target, "bf16", "logits")
    upstream = frozenset({"dlogprob", "dentropy"})
    step = parameters_of(target, "bf16", "weight")["STEP"]
    yield build(order_rows, target, dtype, ORDER_BLOCK, upstream, COMPACT=False, STEP=step)
    yield build(order_rows, target, dtype, ORDER_BLOCK, COMPACT=True, STEP=step)
    yield build(ordered_row, target, dtype, ROW_BLOCK)
    sizes = {"ROWS": tile_of["ROWS"], "PART": tile_of["PART"]}
    yield build(forward_row, target, dtype, ROW_BLOCK, **sizes)
    yield build(scaled_row, target, dtype, ROW_BLOCK, COMPLETE=True)
    yield build(bias_block, target, dtype, BIAS_BLOCK)


BUILDS = tuple(
    each
    for target, dtype, aligned in product((*NVIDIA, AMD), BITS, (False, True))
    for each in builds(target, dtype, aligned)
)
