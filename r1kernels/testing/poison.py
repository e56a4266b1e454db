"""Uninitialised memory is filled with NaN, so that reading it shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, ``torch.empty*`` gives NaN (integers: their maximum), to compiled kernels too.

    PyTorch's allocating functions do it themselves in deterministic mode, on every device; only
    memory that a kernel takes past PyTorch (malloc, C++ outputs of 4 MiB and more, shared memory)
    escapes.
    """
    mode = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
