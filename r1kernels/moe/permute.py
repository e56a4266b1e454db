"""Rows of tokens to where their experts' rows stand: what ``moe_combine`` undoes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered
from r1kernels.moe import combine, sort


def moe_permute(x: Tensor, gather: Tensor, inverse: Tensor) -> Tensor:
    """Row p of the result is that of token gather[p] // k, or 0 where gather[p] is −1.

    Args:
        x: [T, H], float32, bfloat16, float16 or float64.
        gather: [P] int32, of ``moe_sort`` or ``moe_route``.
        inverse: [T, k] int32, of the same.

    Returns:
        [P, H], dtype of x. The gradient of a token is the sum over its k rows, in float32 and in
        the order of its choices.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    _check(x, gather, inverse)
    return MOE_PERMUTE(x, gather, inverse)


@remembered
def _check(x: Tensor, gather: Tensor, inverse: Tensor) -> None:
    shapes = check.Shapes("moe_permute")
    shapes("x", x, "T H", check.FLOATS)
    shapes("gather", gather, "P", (torch.int32,))
    shapes("inverse", inverse, "T k", (torch.int32,))


def reference(x: Tensor, gather: Tensor, inverse: Tensor) -> Tensor:
    token = gather.clamp(min=0) // max(inverse.shape[1], 1)
    if not len(x):
        return x.new_zeros(len(gather), x.shape[1])
    return x[token].masked_fill_(gather[:, None] < 0, 0)


def _fake(x: Tensor, gather: Tensor, inverse: Tensor) -> Tensor:
    return x.new_empty(gather.shape[0], x.shape[1])


def _validate(x: Tensor, gather: Tensor, inverse: Tensor) -> None:
    check.in_range("moe_permute", "gather", gather, inverse.numel(), ignore=-1)


def _save(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(inputs.gather, inputs.inverse)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    gather, inverse = ctx.saved_tensors
    return MOE_PERMUTE.gradients(x=combine.MOE_COMBINE(grad, None, gather, inverse))


def _case(
    name: str, tokens: int, top_k: int, experts: int, width: int, align: int = 1,
    dtype: torch.dtype = torch.bfloat16, *, bench: bool | str = False,
) -> Case:  # fmt: skip
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(tokens)
        ids = torch.rand(tokens, experts + 1, generator=rng).argsort(1)[:, :top_k]
        _, _, gather, inverse = sort.reference(ids, experts, align)
        x = torch.randn(tokens, width, generator=rng).to(device, dtype)
        return x, gather.to(device), inverse.to(device)

    moved = (tokens + tokens * top_k) * width * dtype.itemsize
    return Case(name, make, bytes=float(moved), tier="bitwise", bench=bench)


CASES = (
    _case("bf16", 37, 4, 9, 64),
    _case("fp32", 37, 4, 9, 64, dtype=torch.float32),
    _case("odd width, aligned", 37, 3, 9, 33, 16),
    _case("odd width, fp32, aligned", 21, 3, 9, 51, 16, torch.float32),
    _case("one token", 1, 6, 64, 72),
    _case("no tokens", 0, 4, 9, 64),
    _case("no tokens, aligned", 0, 4, 9, 64, 16),
    _case("T 1024, k 6, H 1024", 1024, 6, 64, 1024, bench="cpu"),
    _case("T 4096, k 8, H 7168", 4096, 8, 256, 7168, bench="cuda"),
)

MOE_PERMUTE = Op(
    "moe_permute(Tensor x, Tensor gather, Tensor inverse) -> Tensor",
    reference=reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.moe.triton.permute",
)
