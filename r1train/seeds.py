"""Reproducibility: every random draw has a seed of its own, and every sum a fixed order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def derive_seed(seed: int, *purpose: object) -> int:
    """A seed for one purpose, such as ("rollout", 17), which no other purpose shares."""
    return random.Random("/".join(map(str, (seed, *purpose)))).getrandbits(63)


@contextmanager
def deterministic() -> Iterator[None]:
    """Within it PyTorch adds up in a fixed order: a run repeats bit by bit.

    Otherwise the threads that scatter gradients to embeddings and experts race on a CPU too. A
    CUDA operation that has no fixed order is warned of and used. Fresh memory is not filled, which
    this mode does otherwise: it would write every gradient and kernel buffer twice.
    """
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # a property that type checkers do not see
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
