"""How evenly experts are used, and the biases that even it out without an auxiliary loss.

After every optimizer step an expert that had more tokens than the mean of its layer gets a smaller
bias and one that had fewer a larger bias (arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437, 2.1.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from r1kernels import update_expert_bias
from r1kernels.hf import expert_counts, routers


class ExpertLoad:
    """Counts an update's tokens by layer and expert; of a dense model, nothing."""

    def __init__(self, model: PreTrainedModel, rate: float) -> None:
        self.routers, self.rate = routers(model), rate
        self.counts: Tensor | None = None  # [L, E]

    def add(self, routing: Sequence[Tensor]) -> None:
        """Counts every token of these sequences, a prompt as often as there are completions of it.

        So neither shared prompts nor the token budget change what an update does.
        """
        counts = expert_counts(torch.cat(list(routing)), self.routers[0].num_experts)
        self.counts = counts if self.counts is None else self.counts + counts

    def figures(self) -> dict[str, Tensor]:
        """How uneven the counts are, a mean over layers; nothing of a dense model.

        `max_violation` is the paper's: the largest load over the mean load, less 1. `shortfall` is
        1 less the smallest load over the mean load: 1 where an expert had no token.
        """
        if self.counts is None:
            return {}
        load = self.counts / self.counts.float().mean(1, keepdim=True)
        return {
            "expert_load/max_violation": load.amax(1).mean() - 1,
            "expert_load/shortfall": 1 - load.amin(1).mean(),
        }

    def step(self) -> None:
        """Moves the biases against the counts, and forgets these."""
        counts, self.counts = self.counts, None
        if counts is None or not self.rate:
            return
        for router, count in zip(self.routers, counts, strict=True):
            if router.bias is not None:
                update_expert_bias(router.bias, count, rate=self.rate)
