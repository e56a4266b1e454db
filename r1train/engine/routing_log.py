"""Which experts tokens went to, without a count of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from r1kernels.hf import routers


class RoutingLog:
    """What the patched routers of `model` chose since it was last asked."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.routers = routers(model)
        self.shape = (len(self.routers), self.routers[0].top_k if self.routers else 0)
        """Layers, and choices of a token in each."""
        self.ids: list[list[Tensor]] = [[] for _ in self.routers]  # of each pass

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within it the routers tell their choices."""
        listener: Any = self  # where a `RecordedRouting` would be, which also counts them
        for router in self.routers:
            router.recording = listener
        try:
            yield
        finally:
            for router in self.routers:
                router.recording = None

    def see(self, layer: int, ids: Tensor) -> None:
        self.ids[layer].append(ids)

    def take(self, tokens: int, device: torch.device) -> Tensor:
        """int16 [T, L, k]: those of all T tokens since; L is 0 without routers."""
        if not self.routers:
            return torch.empty(tokens, 0, 0, dtype=torch.int16, device=device)
        found = torch.stack([torch.cat(passes).to(device) for passes in self.ids], 1)
        self.ids = [[] for _ in self.routers]
        return found.to(torch.int16)
