"""Gradient checkpointing hands out each saved tensor once: a backward pass may ask only once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import r1kernels
from r1kernels.core.op import OPS
from r1kernels.testing.compare import as_tuple

DIFFERENTIABLE = [name for name, op in OPS.items() if op.differentiable]


def gradients(run: Callable[..., Any], args: tuple[Any, ...]) -> list[Tensor | None]:
    """Of the sum of all results, for all floating arguments."""
    given = [
        arg.detach().requires_grad_()
        if isinstance(arg, Tensor) and arg.is_floating_point()
        else arg
        for arg in args
    ]
    outputs = [out for out in as_tuple(run(*given)) if out.requires_grad]
    leaves = [arg for arg in given if isinstance(arg, Tensor) and arg.requires_grad]
    total = torch.stack([out.double().sum() for out in outputs]).sum()
    return list(torch.autograd.grad(total, leaves, allow_unused=True))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_an_op_differentiates_within_a_checkpoint(name: str) -> None:
    op = OPS[name]
    args = next(case for case in op.cases if not case.bench).make("cpu")
    found = gradients(lambda *given: checkpoint(op, *given, use_reentrant=False), args)
    for gradient, expected in zip(found, gradients(op, args), strict=True):
        if expected is None:
            assert gradient is None
        else:
            assert gradient is not None
            torch.testing.assert_close(gradient, expected, rtol=0, atol=0, equal_nan=True)


def test_a_loss_differentiates_within_a_checkpoint() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    weight = torch.randn(11, 8, requires_grad=True)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return r1kernels.fused_linear_grpo_loss(
            hidden,
            weight,
            torch.arange(4),
            cu_seqlens=torch.tensor([0, 2, 4]),
            advantages=torch.tensor([1.0, -1.0]),
            entropy_coef=0.1,
        ).loss

    checkpoint(loss, hidden, weight, use_reentrant=False).backward()
    expected = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    assert torch.equal(hidden.grad, expected[0])
    assert torch.equal(weight.grad, expected[1])
