from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import r1kernels


class Calls(TorchDispatchMode):
    """Keeps the names of the ops that are called below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.append(op.name())
        return op(*args, **(kwargs or {}))


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden = torch.randn(11, 6, dtype=dtype, requires_grad=True)
    weight = torch.randn(23, 6, dtype=dtype, requires_grad=True)
    bias = torch.randn(23, dtype=dtype, requires_grad=True)
    target = torch.randint(23, (11,))
    target[::3] = -100
    return hidden, weight, bias, target


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("capped", [False, True])
def test_equals_cross_entropy_of_the_logits(reduction: str, capped: bool) -> None:
    hidden, weight, bias, target = inputs()
    options = {"softcap": 3.0, "logit_scale": 0.5} if capped else {}
    got = r1kernels.linear_cross_entropy(
        hidden, weight, target, bias=bias, reduction=reduction, **options
    )
    logits = hidden @ weight.T + bias
    if capped:
        logits = 3.0 * torch.tanh(0.5 * logits / 3.0)
    expected = F.cross_entropy(logits, target, reduction=reduction)
    torch.testing.assert_close(got, expected)
    # With "none" every row has a gradient of its own.
    upstream = torch.randn(expected.shape)
    wanted = (hidden, weight, bias)
    torch.testing.assert_close(
        torch.autograd.grad(got, wanted, upstream), torch.autograd.grad(expected, wanted, upstream)
    )


def test_gradcheck() -> None:
    hidden, weight, bias, target = inputs(torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w, b: r1kernels.linear_cross_entropy(h, w, target, bias=b), (hidden, weight, bias)
    )


def test_any_index_can_be_ignored() -> None:
    hidden, weight, _, target = inputs()
    target[::3] = 5
    got = r1kernels.linear_cross_entropy(hidden, weight, target, ignore_index=5)
    torch.testing.assert_close(got, F.cross_entropy(hidden @ weight.T, target, ignore_index=5))


@pytest.mark.parametrize("frozen", [False, True])
def test_all_rows_ignored_is_nan_with_zero_gradients(frozen: bool) -> None:
    hidden, weight, _, target = inputs()
    weight.requires_grad_(not frozen)
    loss = r1kernels.linear_cross_entropy(hidden, weight, torch.full_like(target, -100))
    loss.backward()
    assert loss.isnan()
    assert (hidden.grad == 0).all()
    assert frozen or (weight.grad == 0).all()


def test_the_mean_is_few_calls_of_the_dispatcher() -> None:
    hidden, weight, _, target = inputs()
    with Calls() as forward:
        loss = r1kernels.linear_cross_entropy(hidden, weight, target)
    assert forward.names[-4:] == [
        "aten::eq.Scalar", "aten::unsqueeze", "aten::_to_copy", "aten::nll_loss_forward",
    ]  # fmt: skip
    with Calls() as backward:
        loss.backward()
    assert backward.names[:3] == [
        "aten::ones_like", "aten::nll_loss_backward", "aten::squeeze.dim",
    ]  # fmt: skip
    assert "r1kernels::linear_logprob_backward" in backward.names[3:]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_ignored_rows_may_hold_anything(value: float) -> None:
    hidden, weight, _, target = inputs()
    loss = r1kernels.linear_cross_entropy(hidden, weight, target)
    expected = torch.autograd.grad(loss, (hidden, weight))
    with torch.no_grad():
        hidden[::3] = value
    again = r1kernels.linear_cross_entropy(hidden, weight, target)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(torch.autograd.grad(again, (hidden, weight)), expected)


def test_bad_input_is_named() -> None:
    hidden, weight, _, target = inputs()
    with pytest.raises(ValueError, match="linear_cross_entropy: reduction: expected one of mean"):
        r1kernels.linear_cross_entropy(hidden, weight, target, reduction="avg")
    with pytest.raises(ValueError, match="linear_cross_entropy: weight: expected H = 6"):
        r1kernels.linear_cross_entropy(hidden, weight[:, :5], target)
    with pytest.raises(ValueError, match=r"target\[1\]: expected 0 ≤ target < 23, got 99"):
        r1kernels.linear_cross_entropy(hidden, weight, target.index_fill(0, torch.tensor(1), 99))
