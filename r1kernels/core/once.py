"""Gradients without a gradient of their own say so, where autograd would call them constants."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def second_derivative(op: str) -> NotImplementedError:
    return NotImplementedError(
        f"{op}: it can be differentiated once and not twice (create_graph=True): its gradient has "
        "no gradient"
    )


def inputs_of(arguments: Iterable[Any]) -> list[weakref.ref[Tensor]]:
    """Those that may be differentiated, for ``ctx.inputs``; weak: none is kept in memory for it."""
    if torch.compiler.is_compiling():  # where nothing is differentiated twice
        return []
    return [
        weakref.ref(tensor)
        for tensor in arguments
        if isinstance(tensor, Tensor) and tensor.requires_grad
    ]


def once(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of ``backward(ctx, *grads)``: its gradients raise where they are differentiated.

    PyTorch's ``once_differentiable`` looks at the incoming gradients alone, which mostly are
    constants. This one ties the outgoing ones to ``ctx.inputs``, or raises at once if one of those
    is gone.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(backward)
        def run(ctx: Any, *grads: Any) -> Any:
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():
                return backward(ctx, *grads)
            alive = [tensor() for tensor in ctx.inputs]
            if any(tensor is None for tensor in alive):
                raise second_derivative(op)
            with torch.no_grad():
                found = backward(ctx, *grads)
            found = found if isinstance(found, tuple) else (found,)
            made = [gradient for gradient in found if gradient is not None]
            tied = iter(_Refuse.apply(op, len(alive), *alive, *made))
            return tuple(None if gradient is None else next(tied) for gradient in found)

        return run

    return decorate


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: str, inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.op = op
        return tuple(gradient.view_as(gradient) for gradient in tensors[inputs:])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise second_derivative(ctx.op)
