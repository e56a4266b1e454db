"""On-policy distillation as a whole task: from hidden states to the gradients of the student.

The loss is the mean of KL(student ‖ teacher) over rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div

import r1kernels


class Task(NamedTuple):
    """``inputs`` is (hidden [T, H], weight [V, H]) of the student, with gradients."""

    inputs: tuple[Tensor, Tensor]
    teacher: tuple[Tensor, Tensor]
    upstream: Tensor | None = None


class Scenario(NamedTuple):
    """One task at one size; see ``whole.Scenario``."""

    name: str
    rows: int
    width: int
    teacher_width: int
    columns: int
    dtype: torch.dtype = torch.bfloat16
    kind: str = "reverse_kl"
    peers: tuple[str, ...] | None = None
    yardstick: str = "eager"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows, self.width, self.teacher_width, self.columns

    def describe(self) -> str:
        sizes = f"T {self.rows} × H {self.width} and {self.teacher_width} × V {self.columns}"
        return f"{self.name}: {sizes}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def flops(self) -> float:
        """Of the task: the logits of both once, and the two gradients of the student."""
        return 2.0 * self.rows * self.columns * (3 * self.width + self.teacher_width)

    @property
    def bytes(self) -> float:
        """Least traffic: every input read, every gradient written."""
        widths = 2 * self.width + self.teacher_width
        return self.dtype.itemsize * float(widths * (self.rows + self.columns))

    @property
    def exact_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float32 else torch.float32

    def make(self, device: str, dtype: torch.dtype | None = None) -> Task:
        """The task in ``dtype`` (default: the scenario's); the values are the same in all."""
        rng = torch.Generator(device).manual_seed(self.rows)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=rng, device=device).mul_(scale)
            return values.to(self.dtype).to(dtype or self.dtype)

        def side(width: int) -> tuple[Tensor, Tensor]:
            return normal(self.rows, width), normal(self.columns, width, scale=width**-0.5)

        hidden, weight = side(self.width)
        return Task((hidden.requires_grad_(), weight.requires_grad_()), side(self.teacher_width))


Divergence = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def loss_of(divergence: Divergence) -> Callable[[Task], Tensor]:
    """The task that a ``divergence(hidden, weight, teacher's) -> [T]`` can do."""
    return lambda task: divergence(*task.inputs, *task.teacher).mean()


def plain_divergence(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> Tensor:
    """In plain PyTorch, of whole logits."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    p = (hidden @ weight.T).to(wide).log_softmax(-1)
    q = (teacher_hidden @ teacher_weight.T).to(wide).log_softmax(-1)
    return kl_div(q, p, reduction="none", log_target=True).sum(-1)


OURS = {"reverse_kl": loss_of(lambda *given: r1kernels.linear_reverse_kl(*given).kl)}
