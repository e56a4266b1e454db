"""Figures of a step: means over its parts, seconds by phase, memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


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

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {"values": self.values, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        self.values, self.weights = dict(state["values"]), dict(state["weights"])


class Pending:
    """Figures that are on the device until all of them are read, in one transfer."""

    def __init__(self) -> None:
        self.names: list[tuple[str, ...]] = []
        self.values: list[Tensor] = []

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Tensors []; a group of them is read as one dictionary."""
        self.names.append(tuple(figures))
        self.values.append(torch.stack([value.float() for value in figures.values()]))

    def read(self) -> list[dict[str, float]]:
        """The groups, in their order. Waits for the device."""
        values = iter(torch.cat(self.values).tolist())
        return [dict(zip(names, values, strict=False)) for names in self.names]


class Stopwatch:
    """Seconds by phase: `with watch("rollout"): …`."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = dict(seconds or {})

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        name, seconds = f"seconds/{phase}", time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def total(self) -> float:
        return sum(self.seconds.values())


def peak_memory_gib() -> float:
    """Most memory ever held: the GPU's tensors where there is one in use, else the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
