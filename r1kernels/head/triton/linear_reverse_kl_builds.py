"""What must compile of linear_reverse_kl: its own kernels with their launch parameters."""

from __future__ import annotations

from collections.abc import Iterator

from r1kernels.head.triton.linear_logprob import EXACT, ROW_BLOCK
from r1kernels.head.triton.linear_reverse_kl_tiles import (
    Side,
    forward_row,
    forward_tile,
    gradient_tile,
)
from r1kernels.triton import launch
from r1kernels.triton.build import AMD, MATRIX_UNIT, NVIDIA, Build

INTEGERS = ("start", "size", "rows", "columns", "tiles", "shares_stride")
INTEGERS += ("first_column", "last_column")
ALIGNED = ("parts", "shares", "columns", "shares_stride", "first_column")
ALIGNED += tuple(
    f"{side}.{member}"
    for side in ("student", "teacher")
    for member in ("hidden", "weight", "bias", "width")
)


def builds(dtype: str, options: bool) -> Iterator[Build]:
    side = Side(
        f"*{dtype}", f"*{dtype}", f"*{dtype}" if options else None, "i32", "fp32",
        "fp32" if options else None,
    )  # fmt: skip
    known = {"student": side, "teacher": side, "shares": f"*{dtype}"}
    known |= {"temperature": "*fp32" if options else None, **dict.fromkeys(INTEGERS, "i32")}
    bits = "16" if dtype == "bf16" else "32"
    expects = MATRIX_UNIT if dtype == "bf16" else {}
    for target in (*NVIDIA, AMD):
        tile = dict(launch.table()["linear_reverse_kl.logits"][str(target)][bits])
        run = {name: tile.pop(name) for name in ("num_warps", "num_stages")} | EXACT
        for kernel in (forward_tile, gradient_tile):
            names = [name for name in kernel.arg_names if name not in tile]
            signature = {name: known.get(name, "*fp32") for name in names}
            yield Build(kernel, signature, tile, run, expects, (target,), ALIGNED)
    names = [name for name in forward_row.arg_names if name != "BLOCK"]
    warps = {"num_warps": ROW_BLOCK["num_warps"]} | EXACT
    yield Build(
        forward_row, {name: known.get(name, "*fp32") for name in names},
        {"BLOCK": ROW_BLOCK["BLOCK"]}, warps,
    )  # fmt: skip


BUILDS = (*builds("bf16", False), *builds("bf16", True), *builds("fp32", True))
