"""Derivatives that the ops do not have raise; autograd's silence would make zeros of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import r1kernels
from r1kernels.core.op import OPS, Op
from r1kernels.testing.compare import as_tuple

PURE = [op for op in OPS.values() if not op.overload._schema.is_mutable]
FLOATING = [op for op in PURE if op.name != "moe_sort"]


def floating(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point()


def small_arguments(op: Op) -> list[Any]:
    return list(next(case for case in op.cases if not case.bench).make("cpu"))


@pytest.mark.parametrize("op", FLOATING, ids=lambda op: op.name)
def test_an_op_without_a_gradient_or_with_a_second_one_raises(op: Op) -> None:
    args = [arg.requires_grad_() if floating(arg) else arg for arg in small_arguments(op)]
    leaves = [arg for arg in args if floating(arg)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of an autograd kernel that is not registered
        outputs = [out.float().sum() for out in as_tuple(op(*args)) if out.requires_grad]
        if not op.differentiable:
            with pytest.raises(NotImplementedError, match="gradient"):
                torch.autograd.grad(sum(outputs), leaves, allow_unused=True)
            return
        first = torch.autograd.grad(sum(outputs), leaves, create_graph=True, allow_unused=True)
        # A second path, so that silence would be a wrong number instead of PyTorch's own error.
        total = sum(g.float().pow(2).sum() for g in first if g is not None)
        total = total + sum(leaf.float().sum() for leaf in leaves)
        with pytest.raises(NotImplementedError, match=f"{op.name}: .*once and not twice"):
            torch.autograd.grad(total, leaves, allow_unused=True)


@pytest.mark.parametrize("op", FLOATING, ids=lambda op: op.name)
def test_forward_mode_raises(op: Op) -> None:
    args = small_arguments(op)
    at = next(i for i, arg in enumerate(args) if floating(arg) and arg.itemsize > 1)
    with forward_ad.dual_level():
        args[at] = forward_ad.make_dual(args[at], torch.ones_like(args[at]))
        for call in (op, op.overload):
            with pytest.raises(NotImplementedError, match=f"{op.name}: .*forward-mode"):
                call(*args)


def logits_and_targets() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 7, generator=rng), torch.randint(7, (3, 4), generator=rng)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, z: torch.func.jvp(f, (z,), (torch.ones_like(z),)),
        lambda f, z: torch.func.jacfwd(f)(z),
        lambda f, z: torch.func.hessian(f)(z),
        lambda f, z: torch.func.grad(f)(z),
        lambda f, z: torch.func.vjp(f, z),
        lambda f, z: torch.func.vmap(torch.func.grad(f))(torch.stack([z, z])),
    ],
    ids=["jvp", "jacfwd", "hessian", "grad", "vjp", "vmap of grad"],
)
def test_torch_func_says_what_to_use_instead(transform: Callable[..., Any]) -> None:
    z, y = logits_and_targets()
    with pytest.raises(NotImplementedError, match=r"logprob: .*torch\.autograd\.grad"):
        transform(lambda z: r1kernels.logprob(z, y[0]).logprob.sum(), z[0])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_gives_what_a_loop_gives() -> None:
    z, y = logits_and_targets()
    found = torch.func.vmap(lambda z, y: r1kernels.logprob(z, y).logprob)(z, y)
    each = [r1kernels.logprob(*pair).logprob for pair in zip(z, y, strict=True)]
    assert torch.equal(found, torch.stack(each))


def frozen_head(x: Tensor) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    weight, target = torch.randn(50, 8, generator=rng), torch.randint(50, (6,), generator=rng)
    return r1kernels.linear_logprob(x, weight, target).logprob.sum()


def in_place(x: Tensor) -> Tensor:
    target = torch.zeros(6, dtype=torch.int64)
    return r1kernels.logprob(x * 1, target, inplace_backward=True).logprob.sum()


def policy(x: Tensor) -> Tensor:
    return r1kernels.policy_loss(
        x[:, 0] ** 2, x.new_ones(1), old_logprob=x[:, 1].detach(), cu_seqlens=torch.tensor([0, 6])
    ).loss


def of_fp8_linear(x: Tensor) -> Tensor:
    weight = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    quantized = r1kernels.fp8_quantize(weight, block=(128, 128))
    return r1kernels.fp8_linear(x, weight, quantized).pow(2).sum()


def of_fp8_experts(x: Tensor) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    gate_up = torch.randn(2, 8, 8, generator=rng).requires_grad_()
    down = torch.randn(2, 8, 4, generator=rng)
    codes = [r1kernels.fp8_quantize(weight, block=(128, 128)) for weight in (gate_up, down)]
    routing = r1kernels.moe_route(torch.randn(6, 2, generator=rng), 1)
    return r1kernels.fp8_experts(x, gate_up, down, *codes, routing).pow(2).sum()


@pytest.mark.parametrize("function", [frozen_head, in_place, policy, of_fp8_linear, of_fp8_experts])
def test_hand_written_gradients_are_differentiated_once_too(
    function: Callable[[Tensor], Tensor],
) -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (expected,) = torch.autograd.grad(function(x), x)
    assert expected.abs().sum() > 0

    def twice() -> None:
        (first,) = torch.autograd.grad(function(x), x, create_graph=True)
        torch.autograd.grad(first.pow(2).sum() + x.sum(), x)

    with pytest.raises(NotImplementedError, match="once and not twice"):
        twice()


def test_fp8_linear_trains_a_weight_that_is_quantized_on_the_way_without_a_warning() -> None:
    x = torch.randn(6, 8)
    weight = torch.randn(5, 8).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantized = r1kernels.fp8_quantize(weight, block=(128, 128))
        r1kernels.fp8_linear(x, weight, quantized).sum().backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, x.sum(0).expand(5, -1), rtol=0.1, atol=0.1)


def test_an_op_that_writes_to_its_arguments_is_no_part_of_a_graph() -> None:
    codes, scale = r1kernels.fp8_quantize(torch.randn(4, 8))[:2]
    total = torch.zeros(4, 4)
    with pytest.raises(NotImplementedError, match="fp8_gemm_: it has no gradient"):
        r1kernels.fp8_gemm(
            r1kernels.FP8Tensor(codes, scale.requires_grad_()),
            r1kernels.FP8Tensor(codes, scale),
            accumulate=total,
        )
