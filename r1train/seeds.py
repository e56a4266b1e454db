"""Reproducibility: every random draw has a seed of its own, and every sum a fixed order."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def derive_seed(seed: int, *purpose: object) -> int:
    """A seed for one purpose, such as ("rollout", 17), which no other purpose shares."""
    return random.Random("/".join(map(str, (seed, *purpose)))).getrandbits(63)


@contextmanager
def deterministic(threads: int | None = None) -> Iterator[None]:
    """Within it PyTorch adds up in a fixed order, so a run on a CPU repeats bit by bit.

    With `threads`, it also has that many: by their number its products split their sums.

    Otherwise the threads that scatter gradients to embeddings and experts race on a CPU too. There
    an operation without a fixed order is an error; on CUDA, where attention with a mask has none
    backward and a float64 cumsum is refused, it is warned of and used. cuDNN's attention is off: it
    plans anew for every shape, and ragged batches never repeat one. cuBLAS is given the workspace
    that it needs for a fixed order, which counts only where CUDA has not started yet. Fresh memory
    is not filled, which this mode does otherwise: it would write every gradient and kernel buffer
    twice. docs/determinism.md says what repeats bit by bit, and what does not.
    """
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a property that type checkers do not see
    filled = memory.fill_uninitialized_memory
    cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()
    threads_before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    memory.fill_uninitialized_memory = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(threads_before)
        torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
