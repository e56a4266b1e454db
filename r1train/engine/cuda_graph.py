"""Decoding steps captured in CUDA graphs: a thousand launches become one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch


class Graphs:
    """One graph for each shape of a step, kept from one rollout to the next.

    A step writes everything it changes in place, so that the first call of a shape, which runs as
    it is, warms up the libraries and does its work too. The second is captured. A model that asks
    for a value within its forward cannot be: it runs as it is, and that is said once.
    """

    def __init__(self) -> None:
        self.made_for: Hashable = None
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self.pool: Any = None  # one memory for all: they never run together
        self.refused = False

    def keep_for(self, addresses: Hashable) -> None:
        """Forgets every graph unless what they read and write still lies at `addresses`."""
        if addresses != self.made_for:
            self.graphs.clear()
            self.pool = None
            self.made_for = addresses

    def run(self, shape: Hashable, step: Callable[[], None]) -> None:
        """`step()`, which must do the same at every call for one `shape`."""
        if self.refused:
            step()
            return
        if shape not in self.graphs:
            self.graphs[shape] = None
            self._beside(step)
            return
        graph = self.graphs[shape] or self._captured(step)
        if graph is None:
            step()
            return
        self.graphs[shape] = graph
        graph.replay()

    def _captured(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                step()
        except RuntimeError as error:
            self.refused = True
            reason = str(error).partition("\n")[0]
            logging.getLogger("r1train").warning(
                "decoding is not captured in CUDA graphs, which is slower: %s", reason
            )
            return None
        self.pool = graph.pool()
        return graph

    @staticmethod
    def _beside(step: Callable[[], None]) -> None:
        """On a stream of its own, as PyTorch asks for of what is captured later."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
