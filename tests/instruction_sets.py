"""The instruction sets of the C++ kernels, and which of them run on this machine."""

from __future__ import annotations

import torch

from r1kernels import native

BUILT = ("scalar", "avx2", "avx512", "avx512bf16", "amx")  # by setup.py, weakest first


def here() -> tuple[str, ...]:
    """Those that this machine has; the last one is what runs where nothing limits it."""
    if native.load("cpp") is not None:
        return ()
    return BUILT[: BUILT.index(torch.ops.r1_cpp.isa()) + 1]
