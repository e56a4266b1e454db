"""The whole tasks of the benchmarks: from hidden states or logits to a loss and its gradients.

Every implementation gets the same task: the same tensors, the same loss, the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import r1kernels
from r1kernels.head.head import accumulate_dtype

SEQUENCE = 64  # rows of one completion
EPSILON = 0.2
SLICE = 256  # rows whose logits exist at once while a task is made

# What is computed, from hidden states or (``logits``, ``logprob``) from given logits.
KINDS = ("grpo", "cross_entropy", "logits", "logprob")


class Task(NamedTuple):
    """``inputs`` is (hidden [T, H], weight [V, H]), or (logits [T, V],)."""

    inputs: tuple[Tensor, ...]
    target: Tensor  # [T]
    old_logprob: Tensor  # [T] f32
    advantages: Tensor  # [B] f32
    cu_seqlens: Tensor  # [B + 1] int32
    upstream: Tensor | None = None


Loss = Callable[[Task], Tensor]


class Scenario(NamedTuple):
    """One task at one size; see ``whole.Scenario``."""

    name: str
    rows: int
    width: int
    columns: int
    dtype: torch.dtype = torch.bfloat16
    kind: str = "grpo"
    active: float = 1.0  # share of the sequences with a nonzero advantage
    frozen: bool = False  # the head is not trained
    peers: tuple[str, ...] | None = None
    yardstick: str = "eager"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows, self.width, self.columns

    def describe(self) -> str:
        sizes = [f"T {self.rows}", f"H {self.width}", f"V {self.columns}"]
        if self.given_logits:
            del sizes[1]
        return f"{self.name}: {' × '.join(sizes)}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def given_logits(self) -> bool:
        return self.kind in ("logits", "logprob")

    @property
    def flops(self) -> float:
        """Of the task, whatever is computed twice: logits, and for active rows the gradients."""
        if self.given_logits:
            return 0.0
        products = 1 + self.active * (1 if self.frozen else 2)
        return products * 2.0 * self.rows * self.width * self.columns

    @property
    def bytes(self) -> float:
        """Least traffic: every input read (logits for each pass), every gradient written."""
        if self.given_logits:
            passes = 1 if self.kind == "logprob" else 3
            return passes * self.dtype.itemsize * float(self.rows * self.columns)
        hidden, weight = self.rows * self.width, self.columns * self.width
        return self.dtype.itemsize * (2.0 * hidden + (1 if self.frozen else 2) * weight)

    @property
    def exact_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float32 else torch.float32

    def make(self, device: str, dtype: torch.dtype | None = None) -> Task:
        """The task in ``dtype`` (default: the scenario's); the values are the same in all."""
        rng = torch.Generator(device).manual_seed(self.rows)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=rng, device=device).mul_(scale)
            return values.to(self.dtype).to(dtype or self.dtype)

        if self.given_logits:
            inputs: tuple[Tensor, ...] = (normal(self.rows, self.columns, scale=3.0),)
        else:
            hidden = normal(self.rows, self.width)
            inputs = (hidden, normal(self.columns, self.width, scale=self.width**-0.5))
        target = torch.randint(self.columns, (self.rows,), generator=rng, device=device)
        sequences = self.rows // SEQUENCE
        advantages = torch.randn(sequences, generator=rng, device=device)
        order = torch.randperm(sequences, generator=rng, device=device)
        advantages[order[round(self.active * sequences) :]] = 0
        # Ratios inside the clip: every row of an active sequence has a gradient.
        shifts = torch.tensor([-0.1, -0.05, 0.05, 0.1], device=device)
        with torch.no_grad():  # in float32 whatever the dtype: it is a given, not a result
            hidden, *head = (tensor.float() for tensor in inputs)
            parts = zip(hidden.split(SLICE), target.split(SLICE), strict=True)
            old = torch.cat([plain_logprob(x, *head, y) for x, y in parts])
        old += shifts[torch.randint(4, (self.rows,), generator=rng, device=device)]
        starts = torch.arange(0, self.rows + 1, SEQUENCE, dtype=torch.int32, device=device)
        if self.kind != "logprob":
            for tensor in inputs[: 1 if self.frozen else None]:
                tensor.requires_grad_()
        return Task(inputs, target, old, advantages, starts)


def plain_logprob(*inputs_and_target: Tensor) -> Tensor:
    """Hidden states and weight, or logits, and then the target → [T], in plain PyTorch."""
    *inputs, target = inputs_and_target
    logits = inputs[0] if len(inputs) == 1 else inputs[0] @ inputs[1].T
    logits = logits.to(accumulate_dtype(logits.dtype))
    return logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(-1)


def clipped_loss(logprob: Tensor, old_logprob: Tensor, advantages: Tensor) -> Tensor:
    """Mean over sequences of the token mean, in plain PyTorch; sequences are equally long."""
    advantage = advantages.repeat_interleave(SEQUENCE)
    ratio = (logprob - old_logprob).exp()
    clipped = ratio.clamp(1 - EPSILON, 1 + EPSILON)
    return -torch.minimum(ratio * advantage, clipped * advantage).mean()


def losses_of(logprob: Callable[..., Tensor], *, given_logits: bool = False) -> dict[str, Loss]:
    """The tasks that a differentiable ``logprob(*inputs, target)`` can do, by kind."""

    def grpo(task: Task) -> Tensor:
        got = logprob(*task.inputs, task.target)
        return clipped_loss(got, task.old_logprob, task.advantages)

    if given_logits:
        return {"logits": grpo, "logprob": lambda task: logprob(*task.inputs, task.target)}
    return {
        "grpo": grpo,
        "cross_entropy": lambda task: -logprob(*task.inputs, task.target).mean(),
    }


def ours_grpo(task: Task) -> Tensor:
    return r1kernels.fused_linear_grpo_loss(
        *task.inputs,
        task.target,
        advantages=task.advantages,
        cu_seqlens=task.cu_seqlens,
        old_logprob=task.old_logprob,
        epsilon=EPSILON,
    ).loss


def ours_logits(task: Task) -> Tensor:
    return r1kernels.policy_loss(
        r1kernels.logprob(*task.inputs, task.target).logprob,
        task.advantages,
        cu_seqlens=task.cu_seqlens,
        old_logprob=task.old_logprob,
        epsilon=EPSILON,
    ).loss


OURS: dict[str, Loss] = {
    "grpo": ours_grpo,
    "cross_entropy": lambda task: r1kernels.linear_cross_entropy(*task.inputs, task.target),
    "logits": ours_logits,
    "logprob": lambda task: r1kernels.logprob(*task.inputs, task.target).logprob,
}
