"""logprob(inplace_backward=True): the same gradient, in the memory of the logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.head.logprob import LOGPROB_BACKWARD, LOGPROB_BACKWARD_

TARGET = torch.tensor([3, 0, 55, 8])
OPTIONS = {"temperature": 0.7, "logit_scale": 1.5, "softcap": 3.0, "entropy": True}


def leaf(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 57, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


def loss(logits: Tensor, inplace: bool) -> Tensor:
    result = r1kernels.logprob(logits, TARGET, inplace_backward=inplace, **OPTIONS)
    assert result.entropy is not None
    return (result.logprob * torch.arange(4)).sum() - result.entropy.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_gradient_is_the_same_and_lies_in_the_logits(dtype: torch.dtype) -> None:
    expected, got = leaf(dtype), leaf(dtype)
    loss(expected * 2, False).backward()
    logits = got * 2
    arrived = []
    logits.register_hook(lambda gradient: arrived.append(gradient.data_ptr()))
    loss(logits, True).backward()
    assert torch.equal(got.grad, expected.grad)
    assert arrived == [logits.data_ptr()]
    assert torch.equal(logits.detach() * 2, expected.grad)


def test_strided_logits() -> None:
    expected, got = leaf(), leaf()
    loss((expected * 2)[:, 1:], False).backward()
    loss((got * 2)[:, 1:], True).backward()
    assert torch.equal(got.grad, expected.grad)


def test_liger_272_others_who_saved_the_logits_raise() -> None:
    logits = leaf() * 2
    other = logits.square()  # its backward pass comes after, since autograd runs the newest first
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (other.sum() + loss(logits, True)).backward()


def test_others_whose_backward_pass_comes_before_get_their_gradient() -> None:
    gradients = []
    for inplace in (False, True):
        start = leaf()
        logits = start * 2
        first = loss(logits, inplace)
        (first + logits.square().sum()).backward()
        gradients.append(start.grad)
    assert torch.equal(*gradients)


def test_a_second_backward_pass_raises() -> None:
    value = loss(leaf() * 2, True)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_a_leaf_is_refused() -> None:
    with pytest.raises(ValueError, match="logprob: inplace_backward: expected logits"):
        loss(leaf(), True)


def test_without_gradients_nothing_is_written() -> None:
    logits = leaf().detach()
    before = logits.clone()
    loss(logits, True)
    with torch.no_grad():
        loss(leaf(), True)
    assert torch.equal(logits, before)


def test_opcheck() -> None:
    case = LOGPROB_BACKWARD.cases[0]
    torch.library.opcheck(
        LOGPROB_BACKWARD_.overload,
        case.make("cpu"),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_compile_runs_it_eagerly_or_says_why_not() -> None:
    def compute(start: Tensor) -> Tensor:
        return loss(start * 2, True)

    expected, got = leaf(), leaf()
    loss(expected * 2, False).backward()
    torch.compiler.reset()
    torch.compile(compute, backend="aot_eager")(got).backward()
    assert torch.equal(got.grad, expected.grad)
    torch.compiler.reset()
    with pytest.raises(RuntimeError, match="inplace_backward: expected eager mode"):
        torch.compile(compute, backend="aot_eager", fullgraph=True)(leaf())
