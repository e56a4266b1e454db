"""The specialisations of linear_logprob's kernels that must compile, with their launch parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from r1kernels.triton import launch
from r1kernels.triton.build import AMD, NVIDIA, Build
from r1kernels.triton.linear_logprob_gradients import (
    bias_block,
    hidden_tile,
    scaled_row,
    weight_tile,
)
from r1kernels.triton.linear_logprob_tiles import forward_row, forward_tile, gradient_tile

MATRIX_UNIT = {80: r"mma\.sync", 89: r"mma\.sync", 90: r"wgmma\.mma_async", 100: r"tcgen05\.mma"}
ASYNC_COPY = r"cp\.async"
INDICES = ("order", "active", "lines", "places", "counts", "count", "kept_rows")
PLAIN = {"bias", "temperature", "softcap", "dots", "entropy", "dentropy"}


def build(
    kernel: Any, dtype: str, target: int | str, tile: dict[str, int], absent: set[str], **more: Any
) -> Build:
    """With every multiple of 16 that the headline case has, and None for what is ``absent``."""
    options = {name: tile[name] for name in ("num_warps", "num_stages") if name in tile}
    constexprs = {name: value for name, value in tile.items() if name not in options}
    constexprs |= {name: None for name in absent if name in kernel.arg_names} | more
    signature = {}
    for name in kernel.arg_names:
        if name in INDICES:
            signature[name] = "*i32"
        elif name == "target":
            signature[name] = "*i64"
        elif name in ("hidden", "weight", "bias", "kept", "shares", "dhidden", "scaled", "dbias"):
            signature[name] = f"*{dtype}"
        elif name == "dweight":
            signature[name] = f"*{dtype}"
        elif name in ("logit_scale", "softcap"):
            signature[name] = "fp32"
        elif name in ("start", "size", "columns", "width", "depth", "tiles") or "_" in name:
            signature[name] = "i32"
        else:
            signature[name] = "*fp32"
    aligned = [
        name
        for name, type_ in signature.items()
        if name not in constexprs and type_ != "fp32" and name not in ("size", "tiles")
    ]
    expects = MATRIX_UNIT if dtype == "bf16" and kernel.__name__.endswith("_tile") else {}
    return Build(
        kernel,
        signature,
        constexprs,
        options | {"enable_fp_fusion": False},
        expects=expects,
        targets=(target,),
        aligned=tuple(aligned),
    )


def builds() -> Iterator[Build]:
    for target in (*NVIDIA, AMD):
        for dtype, bits in (("bf16", "16"), ("fp32", "32")):
            logits, hidden, weight = (
                launch.table()[f"linear_logprob.{name}"][str(target)][bits]
                for name in ("logits", "hidden", "weight")
            )
            yield build(forward_tile, dtype, target, logits, set(), EVEN=True)
            yield build(gradient_tile, dtype, target, logits, {"kept"}, EVEN=True)
            if dtype == "bf16":
                yield build(forward_tile, dtype, target, logits, PLAIN, EVEN=True)
                yield build(gradient_tile, dtype, target, logits, PLAIN, EVEN=True)
            yield build(
                hidden_tile, dtype, target, hidden, {"partial"}, FIRST=True, LAST=True, EVEN=True
            )
            if dtype == "bf16":
                yield build(
                    hidden_tile, dtype, target, hidden, set(), FIRST=False, LAST=False, EVEN=True
                )
            yield build(weight_tile, dtype, target, weight, set())


BUILDS = tuple(builds())
