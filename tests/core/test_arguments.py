"""Arguments of an op by the names of its schema."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from r1kernels.core.op import OPS, Op

PERMUTE = OPS["moe_permute"]


def test_arguments_have_the_names_of_the_schema() -> None:
    x, gather, inverse = torch.ones(2, 3), torch.ones(1), torch.zeros(1)
    bound = PERMUTE.bind((x, gather, inverse))
    assert bound.x is x
    assert bound.inverse is inverse
    with pytest.raises(TypeError, match="Expected 3 arguments, got 2"):
        PERMUTE.bind((x, gather))


def test_gradients_stand_where_their_arguments_do() -> None:
    x = torch.ones(2)
    assert PERMUTE.gradients(x=x) == (x, None, None)
    with pytest.raises((TypeError, ValueError), match="weight"):
        PERMUTE.gradients(weight=x)


def test_save_gets_arguments_by_name_and_backward_asks_by_name() -> None:
    library = torch.library.Library("r1kernels", "FRAGMENT")
    saved: list[Any] = []

    def save(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.scale = inputs.scale

    def backward(ctx: Any, grad: Tensor) -> Any:
        saved.append(op.needed(ctx))
        return op.gradients(x=grad * ctx.scale)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("r1kernels.core.op._LIB", library)
        op = Op(
            "toy_named(float scale, Tensor x) -> Tensor",
            reference=lambda scale, x: x * scale,
            fake=lambda scale, x: torch.empty_like(x),
            save=save,
            backward=backward,
        )
        x = torch.ones(2, requires_grad=True)
        for call in (op, op.overload):
            (gradient,) = torch.autograd.grad(call(3.0, x).sum(), x)
            assert gradient.tolist() == [3.0, 3.0]
        assert [(needed.scale, needed.x) for needed in saved] == [(False, True)] * 2
        del OPS["toy_named"]
        library._destroy()
