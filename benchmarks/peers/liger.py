"""Liger: its chunked GRPO loss, its fused linear cross-entropy, and its scaled cross-entropy.

The last is kernels of its own on Hopper, which need ``nvidia-cutlass-dsl``; elsewhere it runs
verl's formulas in chunks of 512 rows. For the mean of a cross-entropy there are more of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import distill_tasks
from benchmarks.peers.adapt import Peer
from benchmarks.tasks import EPSILON, SEQUENCE, Task, losses_of

CHUNK = {"cpu": 256, "cuda": 2048}  # rows at once: faster than its default of one sequence


def chunked_grpo(task: Task) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    (hidden, weight), sequences = task.inputs, len(task.advantages)
    loss = LigerFusedLinearGRPOLoss(
        beta=0.0, use_ref_model=False, chunk_size=CHUNK[hidden.device.type] // SEQUENCE,
        epsilon_low=EPSILON, epsilon_high=EPSILON, loss_type="grpo",
    )  # fmt: skip
    old = task.old_logprob.view(sequences, SEQUENCE)
    return loss(
        hidden.view(sequences, SEQUENCE, -1), weight, task.target.view(sequences, SEQUENCE),
        old.new_ones(old.shape), task.advantages, old_per_token_logps=old,
    )[0]  # fmt: skip


def chunked_divergence(task: distill_tasks.Task) -> Tensor:
    """Its generalised Jensen-Shannon divergence with beta = 1."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    (hidden, weight), (teacher_hidden, teacher_weight) = task.inputs, task.teacher
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0,
        chunk_size=CHUNK[hidden.device.type],
    )  # fmt: skip
    labels = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)  # all count
    result: Tensor = loss(hidden, weight, teacher_hidden, teacher_weight, labels)
    return result


def scaled_logprob(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    from liger_kernel.ops import fused_linear_scaled_cross_entropy as module

    return -module.LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, target)


def fused_logprob(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return -liger_fused_linear_cross_entropy(hidden, weight, target, reduction="none")


def fused_cross_entropy(task: Task) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(*task.inputs, task.target)


def hopper_cross_entropy(task: Task) -> Tensor:
    from liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90 import (
        liger_fused_linear_cross_entropy_sm90,
    )

    return liger_fused_linear_cross_entropy_sm90(*task.inputs, task.target)


NEEDS = ("liger_kernel", "triton")
PEERS = (
    Peer("liger grpo", {"grpo": chunked_grpo}, needs=NEEDS),
    Peer("liger jsd", {"reverse_kl": chunked_divergence}, needs=NEEDS),
    Peer("liger scaled", losses_of(scaled_logprob), needs=NEEDS, needs_on_hopper=("cutlass",)),
    Peer(
        "liger sm90",
        {"cross_entropy": hopper_cross_entropy},
        needs=(*NEEDS, "cutlass"),
        hopper_only=True,
    ),
    Peer(
        "liger fused",
        losses_of(fused_logprob) | {"cross_entropy": fused_cross_entropy},
        needs=NEEDS,
        gpu_only=True,
    ),
)
