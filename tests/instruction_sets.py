"""The instruction sets of the C++ kernels, and which of them run on this machine."""

from __future__ import annotations

import torch

from r1kernels.core import native

BUILT = ("scalar", "avx2", "avx512", "avx512bf16", "amx")  # by setup.py or some, weakest first


def here() -> tuple[str, ...]:
    """Those that this machine has; the last one is what runs where nothing limits it."""
    if native.load("cpp") is not None:
        return ()
    found = tuple(name for name in BUILT if torch.ops.r1_cpp.limit_isa(name) == name)
    torch.ops.r1_cpp.limit_isa("")
    return found
