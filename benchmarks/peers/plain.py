"""Plain PyTorch: eager, compiled, and in checkpointed chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks import distill_tasks
from benchmarks.distill_tasks import loss_of, plain_divergence
from benchmarks.peers.adapt import Peer
from benchmarks.tasks import Task, clipped_loss, losses_of, plain_logprob
from r1kernels.core.op import Op

# Their references loop over experts with the counts in Python, or over blocks of queries: there is
# nothing to compile.
ON_THE_HOST = (
    "grouped_mm", "moe_experts", "fp8_grouped_gemm", "fp8_grouped_wgrad", "packed_attention",
)  # fmt: skip
CHUNK = {"cpu": 128, "cuda": 1024}  # rows that become logits at once


def of_op(op: Op) -> dict[str, Callable[..., Any]]:
    """The reference of any op, eager and compiled."""
    reference = op.implementations["torch"].run
    if op.forward_name in ON_THE_HOST:
        return {"eager": reference}
    return {"eager": reference, "compile": torch.compile(reference, dynamic=False)}


def grouped_mm(x: Tensor, weight: Tensor, offsets: Tensor, transposed: bool) -> Tensor:
    right = weight if transposed else weight.transpose(1, 2)
    return torch.nn.functional.grouped_mm(x, right, offs=offsets[1:])


def grouped_mm_backward(left: Tensor, right: Tensor, offsets: Tensor) -> Tensor:
    return torch.nn.functional.grouped_mm(left.T, right, offs=offsets[1:])


def chunked_logprob(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    rows = CHUNK[hidden.device.type]
    parts = zip(hidden.split(rows), target.split(rows), strict=True)
    return torch.cat(
        [checkpoint(plain_logprob, x, weight, y, use_reentrant=False) for x, y in parts]
    )


def chunked_divergence(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> Tensor:
    rows = CHUNK[hidden.device.type]
    return torch.cat(
        [
            checkpoint(plain_divergence, x, weight, y, teacher_weight, use_reentrant=False)
            for x, y in zip(hidden.split(rows), teacher_hidden.split(rows), strict=True)
        ]
    )


@torch.compile(dynamic=False)
def _divergence(task: distill_tasks.Task) -> Tensor:
    return plain_divergence(*task.inputs, *task.teacher).mean()


@torch.compile(dynamic=False)
def _clipped(inputs: tuple[Tensor, ...], target: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    return clipped_loss(plain_logprob(*inputs, target), old, advantages)


@torch.compile(dynamic=False)
def _logprob(inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
    return plain_logprob(*inputs, target)


@torch.compile(dynamic=False)
def _cross_entropy(inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
    return -plain_logprob(*inputs, target).mean()


def compiled_clipped(task: Task) -> Tensor:
    return _clipped(task.inputs, task.target, task.old_logprob, task.advantages)


COMPILED: dict[str, Any] = {
    "reverse_kl": _divergence,
    "grpo": compiled_clipped,
    "logits": compiled_clipped,
    "cross_entropy": lambda task: _cross_entropy(task.inputs, task.target),
    "logprob": lambda task: _logprob(task.inputs, task.target),
}
PEERS = (
    Peer("compile", COMPILED),
    Peer(
        "eager",
        {
            **losses_of(plain_logprob),
            **losses_of(plain_logprob, given_logits=True),
            "reverse_kl": loss_of(plain_divergence),
        },
    ),
    Peer("chunked", {**losses_of(chunked_logprob), "reverse_kl": loss_of(chunked_divergence)}),
    Peer(
        "F.grouped_mm", ops={"grouped_mm": grouped_mm, "grouped_mm_backward": grouped_mm_backward}
    ),
)
