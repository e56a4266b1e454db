"""The specialisations of norms, rotations and gated activations that must compile.

Widths are those of models: hidden states of 576 to 16384 columns, heads of 64 and 128.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from r1kernels.elementwise.triton import gated_activation, rms_norm, rope
from r1kernels.triton import launch
from r1kernels.triton.build import AMD, NVIDIA, Build
from r1kernels.triton.handles import UNFUSED
from r1kernels.triton.rows import sized

READ = r"(ld\.global[\w:.]*\.v4|cp\.async\.c[ag]\.shared\.global[^;]*, 0x10)"
WIDE = dict.fromkeys(NVIDIA, rf"{READ}[\s\S]*st\.global[\w:.]*\.v4")
NUMBERS = {"eps": "fp32", "offset": "fp32"}
SUMS = ("rstd", "parts")
COUNTS = ("rows", "count", "tokens", "length")

Target = int | str


def build(
    kernel: Any, target: Target, dtype: str, sizes: dict[str, Any], **signature: Any
) -> Build:
    """``sizes``: compile-time arguments and options; the rest are tensors, strides and counts."""
    constexprs = {name: sizes[name] for name in kernel.arg_names if name in sizes}
    for name in kernel.arg_names:
        if name in (*COUNTS, "size") or name.endswith("_stride"):
            signature.setdefault(name, "i32")
        signature.setdefault(name, NUMBERS.get(name, "*fp32" if name in SUMS else f"*{dtype}"))
    options = {name: sizes[name] for name in sizes if name not in kernel.arg_names}
    aligned = [name for name in signature if name not in (*COUNTS, *NUMBERS)]
    for name, value in signature.items():
        aligned += [f"{name}.{field}" for field in getattr(value, "_fields", ())]
    return Build(kernel, signature, constexprs, options, WIDE, (target,), tuple(aligned))


def of_norms(target: Target, dtype: str, table: dict[str, dict[str, int]]) -> Iterator[Build]:
    plain = ("residual", "residual_stride", "dh", "dh_stride")
    absent_in = {128: (), 576: (), 4096: plain, 8192: (), 16384: ("parts",)}
    for width, absent in absent_in.items():
        for kernel in (rms_norm.forward, rms_norm.gradient):
            backward = kernel is rms_norm.gradient
            given = table[rms_norm.gradient_of(width) if backward else "rms_norm.forward"]
            tile = sized(width, given["ELEMENTS"], given["DEPTH"])
            sizes = {
                "WIDTH": width,
                "ROUND": absent != plain,
                "ROWS": tile.rows,
                "COLUMNS": tile.columns,
            }
            if backward:
                sizes["STAGES"] = given["STAGES"]
            sizes["num_warps"] = tile.num_warps
            without = dict.fromkeys(name for name in absent if name in kernel.arg_names)
            yield build(kernel, target, dtype, sizes, **without)
    sums = build(
        rms_norm.add_parts, target, dtype, {"WIDTH": 4096, "num_warps": 8, **rms_norm.SUMMED}
    )
    yield replace(sums, expects={})


def of_gates(target: Target, dtype: str, table: dict[str, dict[str, int]]) -> Iterator[Build]:
    for activation, width in (("silu", None), ("silu", 14336), ("gelu_tanh", None), ("gelu", None)):
        for kernel in (gated_activation.forward, gated_activation.gradient):
            given = table[f"gated_activation.{kernel.__name__}"]
            strides = [] if width else [n for n in kernel.arg_names if n.endswith("_stride")]
            sizes = {"ACTIVATION": activation, "WIDTH": width, **given}
            yield build(kernel, target, dtype, sizes, **dict.fromkeys(strides))


def of_rotations(target: Target, dtype: str, table: dict[str, dict[str, int]]) -> Iterator[Build]:
    heads = rope.Heads(f"*{dtype}", f"*{dtype}", *["i32"] * 7)
    for half, width, interleaved, of_tables in (
        (64, 128, False, dtype), (32, 64, True, dtype), (32, 128, False, dtype),
        (64, 128, True, "fp32"),
    ):  # fmt: skip
        angles = rope.Angles(f"*{of_tables}", f"*{of_tables}", *["i32"] * 4)
        sizes = {"INTERLEAVED": interleaved, "INVERSE": True, "HALF": half, "WIDTH": width}
        sizes |= rope.sizes(half, width, **table["rope"]) | UNFUSED
        yield build(rope.kernel, target, dtype, sizes, q=heads, k=heads, angles=angles)


def builds() -> Iterator[Build]:
    for target in (*NVIDIA, AMD):
        for dtype, bits in (("bf16", "16"), ("fp32", "32")):
            table = {
                name: targets[str(target)].get(bits, {})
                for name, targets in launch.table().items()
                if str(target) in targets  # some kernels are for Hopper alone
            }
            for family in (of_norms, of_gates, of_rotations):
                yield from family(target, dtype, table)


BUILDS = tuple(builds())
