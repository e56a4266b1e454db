"""Figures of a step: means over its parts, seconds by phase, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Metrics:
    """Collects figures; a name that ends in `_max` keeps its largest value, others their mean."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.weights: dict[str, float] = {}

    def add(self, figures: Mapping[str, float], weight: float = 1.0) -> None:
        for name, value in figures.items():
            if name.endswith("_max"):
                self.values[name] = max(value, self.values.get(name, value))
                continue
            total = self.weights[name] = self.weights.get(name, 0.0) + weight
            mean = self.values.get(name, 0.0)
            self.values[name] = mean + (value - mean) * weight / total


class Stopwatch:
    """Seconds by phase: `with watch("rollout"): …`."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict(seconds or {})

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        name = f"seconds/{phase}"
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def total(self) -> float:
        return sum(self.seconds.values())


def peak_memory_gib() -> float:
    """Most memory ever held: the GPU's tensors where there is one in use, else the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
