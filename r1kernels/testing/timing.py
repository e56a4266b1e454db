"""Median times of several candidates that run in turn, so that drift and noise hit all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Call = Callable[[], Any]
PATIENCE = 10.0  # seconds
L2_BYTES = 256 << 20  # larger than any cache of today's GPUs


def interleaved(
    candidates: Mapping[str, Call],
    *,
    device: str = "cpu",
    seconds: float = 1.0,
    rounds: tuple[int, int] = (3, 200),
    warmup: int = 2,
) -> dict[str, float]:
    """Run the candidates A B C, C B A, A B C … and give the median seconds of each.

    The order turns, so that none always runs in the memory that a heavy neighbour left behind.

    Args:
        seconds: a candidate that has run for so long, and for the fewest rounds, is done.
        rounds: the fewest and the most rounds, whatever ``seconds`` says; but what has once taken
            ``PATIENCE`` seconds is done.
        warmup: untimed calls of each candidate: compilation, caches, allocator.
    """
    for call in candidates.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    fewest, most = rounds
    for done in range(most):
        running = [
            name
            for name, known in times.items()
            if max(known, default=0) < PATIENCE and (done < fewest or sum(known) < seconds)
        ]
        for name in running[:: 1 if done % 2 == 0 else -1]:
            times[name].append(seconds_of(candidates[name], device))
    return {name: statistics.median(values) for name, values in times.items()}


def seconds_of(call: Call, device: str) -> float:
    """How long one call takes; on CUDA with a cold L2, as in training, and to its last kernel."""
    return _cuda_seconds(call) if device == "cuda" else _cpu_seconds(call)


def _cpu_seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_seconds(call: Call) -> float:
    torch.empty(L2_BYTES, dtype=torch.uint8, device="cuda").zero_()  # a cold L2
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
