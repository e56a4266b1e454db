"""The tasks of a mixture of experts: to route, to move rows, and to run the experts.

Every implementation begins with what a model's layer has at that point, and makes its own order of
rows and whatever else it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import r1kernels
from r1kernels import Routing

GROUPS = (8, 4)  # DeepSeek-V3's, and how many of them a token uses
SCALE = 2.5


class Task(NamedTuple):
    """``inputs``: (logits,), (x, weights) or (x, gate_up, down, weights), by kind."""

    inputs: tuple[Tensor, ...]
    ids: Tensor  # [T, k] int64
    experts: int
    bias: Tensor  # [E] f32, of the choice
    upstream: Tensor | None  # [T, H]


Run = Callable[[Task], Tensor]


class Scenario(NamedTuple):
    """One task at one size; see ``whole.Scenario``."""

    name: str
    tokens: int
    experts: int
    top_k: int
    width: int = 0
    inner: int = 0
    kind: str = "experts"
    dtype: torch.dtype = torch.bfloat16
    peers: tuple[str, ...] | None = None
    forward: bool = False  # alone, as in generation

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tokens, self.experts, self.top_k, self.width, self.inner

    @property
    def yardstick(self) -> str:
        if self.kind != "experts":
            return "eager"
        # grouped_mm has no float64, and eager takes a gradient of all weights for each expert.
        return "hf eager" if self.dtype == torch.float32 else "hf grouped_mm"

    def describe(self) -> str:
        sizes = zip("TEkHI", self.shape, strict=True)
        given = " × ".join(f"{name} {size}" for name, size in sizes if size)
        return f"{self.name}: {given}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def slots(self) -> int:
        return self.tokens * self.top_k

    @property
    def flops(self) -> float:
        """Of the task: the three products of a SwiGLU, and twice as many for their gradients."""
        if self.kind != "experts":
            return 0.0
        return (1 if self.forward else 3) * 6.0 * self.slots * self.width * self.inner

    @property
    def bytes(self) -> float:
        """Least traffic: every input read, every result and gradient written."""
        if self.kind == "route":
            return self.tokens * (self.experts * 4.0 + self.top_k * 12.0)
        rows = self.dtype.itemsize * self.width * float(self.tokens)
        if self.kind == "permute":
            return (1 if self.forward else 2) * rows * (2 + 2 * self.top_k)
        weights = 3.0 * min(self.experts, self.slots) * self.width * self.inner
        return (1 if self.forward else 2) * (2 * rows + self.dtype.itemsize * weights)

    @property
    def exact_dtype(self) -> torch.dtype:
        wide = self.kind != "experts" or self.dtype == torch.float32
        return torch.float64 if wide else torch.float32

    def make(self, device: str, dtype: torch.dtype | None = None) -> Task:
        """The task in ``dtype`` (default: the scenario's); the values are the same in all."""
        rng = torch.Generator(device).manual_seed(self.tokens)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=rng, device=device).mul_(scale)
            return values.to(self.dtype).to(dtype or self.dtype)

        logits = torch.randn(self.tokens, self.experts, generator=rng, device=device)
        bias = torch.randn(self.experts, generator=rng, device=device) / 10
        ids = (logits + bias).topk(self.top_k).indices
        if self.kind == "route":
            return Task((logits.to(dtype or self.dtype),), ids, self.experts, bias, None)
        weights = torch.rand(self.tokens, self.top_k, generator=rng, device=device)
        weights = weights.to(torch.promote_types(dtype or self.dtype, torch.float32))
        inputs = (normal(self.tokens, self.width), weights)
        if self.kind == "experts":
            shape = self.experts, 2 * self.inner, self.width
            gate_up = normal(*shape, scale=self.width**-0.5)
            down = normal(self.experts, self.width, self.inner, scale=self.inner**-0.5)
            inputs = (inputs[0], gate_up, down, weights)
        if not self.forward:
            for tensor in inputs:
                tensor.requires_grad_()
        upstream = normal(self.tokens, self.width)
        return Task(inputs, ids, self.experts, bias, upstream)


def route(task: Task) -> Tensor:
    (logits,) = task.inputs
    top_k = task.ids.shape[1]
    found = r1kernels.moe_route(
        logits, top_k, bias=task.bias, num_groups=GROUPS[0], top_k_groups=GROUPS[1], scale=SCALE,
        align=None,
    )  # fmt: skip
    return found.weights


def permute(task: Task) -> Tensor:
    x, weights = task.inputs
    order = Routing.of(weights, task.ids, task.experts)
    rows = r1kernels.moe_permute(x, order.gather, order.inverse)
    return r1kernels.moe_combine(rows, order.weights, order.gather, order.inverse)


def experts(task: Task) -> Tensor:
    x, gate_up, down, weights = task.inputs
    return r1kernels.moe_experts(x, gate_up, down, Routing.of(weights, task.ids, task.experts))


OURS: dict[str, Run] = {"route": route, "permute": permute, "experts": experts}
