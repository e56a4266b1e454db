"""HuggingFace transformers: its router's code, its indexing, and its ways to run experts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.moe_tasks import GROUPS, SCALE, Task
from benchmarks.peers.adapt import Peer


def choose(
    logits: Tensor, top_k: int, bias: Tensor, num_groups: int, top_k_groups: int
) -> tuple[Tensor, Tensor]:
    """What DeepseekV3TopkRouter does after its product, with the choices sorted."""
    scores = logits.sigmoid()
    biased = scores + bias
    size = logits.shape[1] // num_groups
    group = biased.view(-1, num_groups, size).topk(2, dim=-1)[0].sum(dim=-1)
    best = torch.topk(group, k=top_k_groups, dim=-1, sorted=False)[1]
    kept = torch.zeros_like(group).scatter_(1, best, 1)
    kept = kept.unsqueeze(-1).expand(-1, num_groups, size).reshape(-1, logits.shape[1])
    biased = biased.masked_fill(~kept.bool(), float("-inf"))
    ids = torch.topk(biased, k=top_k, dim=-1)[1]
    weights = scores.gather(1, ids)
    return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20), ids


def route(task: Task) -> Tensor:
    return choose(task.inputs[0], task.ids.shape[1], task.bias, *GROUPS)[0] * SCALE


def permute(task: Task) -> Tensor:
    """The indexing of grouped_mm_experts_forward, without the experts."""
    x, weights = task.inputs
    tokens, top_k = weights.shape
    _, order = torch.sort(task.ids.reshape(-1))
    rows = x[order // top_k] * weights.reshape(-1)[order].unsqueeze(-1)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0], device=x.device)
    return rows[inverse].view(tokens, top_k, -1).sum(dim=1).to(x.dtype)


def experts(forward: Callable[..., Tensor]) -> Callable[[Task], Tensor]:
    """A task done by one of transformers' experts implementations."""

    def run(task: Task) -> Tensor:
        x, gate_up, down, weights = task.inputs
        return forward(_module(gate_up, down), x, task.ids, weights)

    return run


def _module(gate_up: Tensor, down: Tensor) -> Any:
    """What an implementation reads of a module of experts."""

    def gate(rows: Tensor) -> Tensor:
        gate, up = rows.chunk(2, dim=-1)
        return F.silu(gate) * up

    return SimpleNamespace(
        num_experts=len(gate_up), gate_up_proj=gate_up, down_proj=down, act_fn=F.silu,
        has_gate=True, has_bias=False, is_transposed=False, is_concatenated=True,
        has_post_expert_norm=False, _is_expert_parallel=False, _apply_gate=gate,
    )  # fmt: skip


def grouped(module: Any, *args: Tensor) -> Tensor:
    from transformers.integrations.moe import grouped_mm_experts_forward

    return grouped_mm_experts_forward(module, *args)


def batched(module: Any, *args: Tensor) -> Tensor:
    from transformers.integrations.moe import batched_mm_experts_forward

    return batched_mm_experts_forward(module, *args)


def eager(module: Any, *args: Tensor) -> Tensor:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

    forward: Callable[..., Tensor] = DeepseekV3Experts.forward.__wrapped__
    return forward(module, *args)


@torch.compile(dynamic=False)
def compiled_route(task: Task) -> Tensor:
    return route(task)


@torch.compile(dynamic=False)
def compiled_permute(task: Task) -> Tensor:
    return permute(task)


NEEDS = ("transformers",)
PEERS = (
    Peer("eager", {"route": route, "permute": permute}),
    Peer("compile", {"route": compiled_route, "permute": compiled_permute}),
    Peer("hf grouped_mm", {"experts": experts(grouped)}, needs=NEEDS),
    Peer("hf batched_mm", {"experts": experts(batched)}, needs=NEEDS),
    Peer("hf eager", {"experts": experts(eager)}, needs=NEEDS),
)
