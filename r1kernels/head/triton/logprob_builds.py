"""The specialisations of logprob's kernels that must compile, with their launch parameters."""

from __future__ import annotations

from collections.abc import Iterator

from r1kernels.head.triton.logprob import ROWS, Given, Results, combine, gradient, read
from r1kernels.triton import launch
from r1kernels.triton.build import AMD, NVIDIA, Build

ALIGNED = ("given.logits", "given.columns", "given.row_stride", "dlogits", "out_stride")
READS_WIDE = dict.fromkeys(NVIDIA, r"ld\.global\.v4")
READS_AND_WRITES_WIDE = dict.fromkeys(NVIDIA, r"ld\.global\.v4[\s\S]*st\.global\.v4")


def builds(dtype: str, softcap: str | None, entropy: str | None) -> Iterator[Build]:
    signature = {
        "given": Given(
            f"*{dtype}", "*i64", "*fp32" if softcap else None, "i32", "i32", "fp32", softcap
        ),
        "out": Results("*fp32", entropy, "*fp32"),
        "saved": Results(None, "*fp32", "*fp32"),
        "parts": "*fp32",
        "ENTROPY": entropy is not None,
        "rows": "i32",
        "splits": "i32",
        "dlogprob": "*fp32",
        "dentropy": entropy,
        "dlogits": f"*{dtype}",
        "out_stride": "i32",
    }
    bits = "16" if dtype == "bf16" else "32"
    for target in (*NVIDIA, AMD):
        for kernel, expects in ((read, READS_WIDE), (gradient, READS_AND_WRITES_WIDE)):
            tile = dict(launch.table()[f"logprob.{kernel.__name__}"][str(target)][bits])
            options = {"num_warps": tile.pop("num_warps")}
            yield Build(kernel, signature, tile, options, expects, (target,), ALIGNED)
    yield Build(combine, signature, {"ROWS": ROWS, "SPLITS": 8})


BUILDS = (
    *builds("bf16", None, None),
    *builds("bf16", "fp32", "*fp32"),
    *builds("fp32", None, "*fp32"),
)
