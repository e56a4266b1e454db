"""Decoding steps captured in CUDA graphs: a thousand launches become one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch


class Graphs:
    """One graph for each shape of a step, kept from one rollout to the next.

    A step writes everything it changes in place, so that the first call of a shape, which runs as
    it is, warms up the libraries and does its work too. The second is captured.
    """

    def __init__(self) -> None:
        self.made_for: Hashable = None
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self.pool: Any = None  # one memory for all: they never run together

    def keep_for(self, addresses: Hashable) -> None:
        """Forgets every graph unless what they read and write still lies at `addresses`."""
        if addresses != self.made_for:
            self.graphs.clear()
            self.pool = None
            self.made_for = addresses

    def run(self, shape: Hashable, step: Callable[[], None]) -> None:
        """`step()`, which must do the same at every call for one `shape`."""
        if shape not in self.graphs:
            self.graphs[shape] = None
            self._beside(step)
            return
        graph = self.graphs[shape]
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                step()
            self.graphs[shape], self.pool = graph, graph.pool()
        graph.replay()

    @staticmethod
    def _beside(step: Callable[[], None]) -> None:
        """On a stream of its own, as PyTorch asks for of what is captured later."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
