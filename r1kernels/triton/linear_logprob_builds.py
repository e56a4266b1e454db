"""What must compile of linear_logprob: its kernels with the parameters that they are launched with.

Multiples of 16 are those of the headline case, 8192 rows × 4096 × 151936.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from r1kernels.triton import launch
from r1kernels.triton.build import AMD, MATRIX_UNIT, NVIDIA, Build
from r1kernels.triton.linear_logprob import BIAS_BLOCK, EXACT, ROW_BLOCK
from r1kernels.triton.linear_logprob_gradients import (
    bias_block,
    hidden_tile,
    scaled_row,
    weight_tile,
)
from r1kernels.triton.linear_logprob_tiles import forward_row, forward_tile, gradient_tile

BITS = {"bf16": "16", "fp32": "32"}

FLOATS = ("hidden", "weight", "bias", "kept", "shares", "scaled", "dhidden", "dweight", "dbias")
INDICES = ("order", "active", "lines", "places", "counts", "count", "kept_rows")
SCALARS = ("start", "size", "columns", "width", "depth", "first_column", "last_column")
SCALARS += ("shares_stride", "shares_rows", "kept_stride")

UNALIGNED = ("logit_scale", "softcap", "size", "shares_rows", "last_column")

EVERYTHING: frozenset[str] = frozenset()
NOT_KEPT = frozenset({"kept"})
OPTIONS = frozenset({"bias", "temperature", "softcap", "dots", "entropy", "dentropy"})


def type_of(argument: str, dtype: str) -> str:
    if argument in ("logit_scale", "softcap"):
        return "fp32"
    if argument in SCALARS:
        return "i32"
    kinds = {FLOATS: dtype, INDICES: "i32", ("target",): "i64"}
    return "*" + next((kind for names, kind in kinds.items() if argument in names), "fp32")


def build(
    kernel: Any,
    target: int | str,
    dtype: str,
    parameters: dict[str, int],
    absent: frozenset[str] = EVERYTHING,
    **constexprs: Any,
) -> Build:
    """One build; arguments named in ``absent`` are None."""
    names = kernel.arg_names
    given = {**parameters, **constexprs, **{name: None for name in absent if name in names}}
    signature = {name: type_of(name, dtype) for name in names if name not in given}
    multiplies = dtype != "fp32" and kernel.__name__.endswith("_tile")
    return Build(
        kernel,
        signature,
        {name: value for name, value in given.items() if name in names},
        {name: value for name, value in given.items() if name not in names} | EXACT,
        expects=MATRIX_UNIT if multiplies else {},
        targets=(target,),
        aligned=tuple(name for name in signature if name not in UNALIGNED),
    )


def builds(target: int | str, dtype: str) -> Iterator[Build]:
    def tile(kernel: Any, name: str, *absent: Any, **constexprs: Any) -> Build:
        parameters = launch.table()[f"linear_logprob.{name}"][str(target)][BITS[dtype]]
        return build(kernel, target, dtype, parameters, *absent, **constexprs)

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
    part = launch.table()["linear_logprob.logits"][str(target)]["16"]["PART"]
    yield build(forward_row, target, dtype, ROW_BLOCK, PART=part)
    yield build(scaled_row, target, dtype, ROW_BLOCK)
    yield build(bias_block, target, dtype, BIAS_BLOCK)


BUILDS = tuple(
    each for target, dtype in product((*NVIDIA, AMD), BITS) for each in builds(target, dtype)
)
