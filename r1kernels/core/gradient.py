"""How autograd meets an op: one ``torch.autograd.Function`` for each, also at PyTorch's own key.

``torch.library.register_autograd`` gives the same, but reads the op's schema anew at every call
that is differentiated, which takes longer than most kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

from r1kernels.core.once import inputs_of


def function_of(
    op: str,
    fields: type[tuple[Any, ...]],
    save: Callable[..., None] | None,
    backward: Callable[..., Any],
) -> type[Function]:
    """A Function that is applied to the op's arguments and, after them, what computes it of them.

    Args:
        fields: names of the arguments.
        save: ``save(ctx, inputs, output)``, if there is something to save.
        backward: ``backward(ctx, *grads) -> one gradient or None per input``.
    """

    def forward(ctx: Any, *given: Any) -> Any:
        *inputs, run = given
        output = run(*inputs)
        ctx.inputs = inputs_of(inputs)
        if save is not None:
            save(ctx, tuple.__new__(fields, inputs), output)  # as _make, which counts them
        return output

    def gradients(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        found = backward(ctx, *grads)
        return (*found, None) if isinstance(found, tuple) else (found, None)

    members = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
    return type(op, (Function,), members)


def register(library: torch.library.Library, overload: Any, function: type[Function]) -> None:
    """What PyTorch's dispatcher runs for the op before it looks at devices."""

    def run(keys: Any, *args: Any) -> Any:
        below = keys & torch._C._after_autograd_keyset

        def compute(*inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                return overload.redispatch(below, *inputs)

        tracked = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
        return function.apply(*args, compute) if tracked else compute(*args)

    library.impl(overload._opname, run, "Autograd", with_keyset=True)
