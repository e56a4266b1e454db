from __future__ import annotations

import pytest
import torch
from torch import Tensor

import r1kernels

OPTIONS = {"temperature": 0.7, "logit_scale": 1.5, "softcap": 3.0}


def naive(
    logits: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    z = logits * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    distribution = torch.distributions.Categorical(logits=z / temperature)
    return distribution.log_prob(target), distribution.entropy()


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "options"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradient(options: dict[str, float], dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(9, 57)).to(dtype).requires_grad_()
    target = torch.randint(57, (9,))
    weights = torch.randn(2, 9)
    got = r1kernels.logprob(logits, target, entropy=True, **options)
    (got.logprob @ weights[0] + got.entropy @ weights[1]).backward()
    exact = logits.detach().double().requires_grad_()
    logprob, entropy = naive(exact, target, **options)
    (logprob @ weights[0].double() + entropy @ weights[1].double()).backward()
    assert got.logprob.dtype == got.entropy.dtype == torch.float32
    torch.testing.assert_close(got.logprob, logprob.float())
    torch.testing.assert_close(got.entropy, entropy.float())
    torch.testing.assert_close(logits.grad, exact.grad.to(dtype))


def test_gradcheck() -> None:
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(
        lambda z: r1kernels.logprob(z, target, entropy=True, **OPTIONS), logits
    )


def test_entropy_is_absent_unless_asked_for() -> None:
    assert r1kernels.logprob(torch.randn(2, 5), torch.tensor([0, 1])).entropy is None


def test_infinite_logits_remove_tokens() -> None:
    logits = torch.randn(3, 8)
    logits[:, 5:] = -torch.inf
    target = torch.tensor([0, 1, 4])
    kept = logits[:, :5].clone().requires_grad_()
    logits.requires_grad_()
    got = r1kernels.logprob(logits, target, entropy=True)
    expected = r1kernels.logprob(kept, target, entropy=True)
    torch.testing.assert_close(got, expected)
    (got.logprob - got.entropy).sum().backward()
    (expected.logprob - expected.entropy).sum().backward()
    torch.testing.assert_close(logits.grad[:, :5], kept.grad)
    assert (logits.grad[:, 5:] == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_of_anything_have_zero_gradient_where_nothing_flows(value: float) -> None:
    logits = torch.randn(3, 8)
    logits[1] = value
    logits.requires_grad_()
    got = r1kernels.logprob(logits, torch.tensor([0, 1, 2]), entropy=True)
    flows = torch.tensor([True, False, True])
    (got.logprob + got.entropy).where(flows, 0).sum().backward()
    assert (logits.grad[1] == 0).all()
    assert (logits.grad[::2] != 0).all()


def test_logits_changed_in_place_before_the_backward_pass_are_noticed() -> None:
    leaf = torch.randn(2, 5, requires_grad=True)
    logits = leaf * 1
    got = r1kernels.logprob(logits, torch.tensor([0, 1]))
    logits.detach().add_(1)
    logits.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        got.logprob.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.ones(5)}, r"logits: expected shape \[T, V\], got \[5\]"),
        ({"logits": torch.ones(2, 5).long()}, "logits: expected dtype .*, got int64"),
        ({"target": torch.tensor([0, 5])}, r"target\[1\]: expected 0 ≤ target < 5, got 5"),
        ({"target": torch.tensor([-1, 0])}, r"target\[0\]: expected 0 ≤ target < 5, got -1"),
        ({"target": torch.tensor([0])}, r"target: expected T = 2 .*, got \[1\]"),
        ({"target": torch.zeros(2)}, "target: expected dtype int64 or int32, got float32"),
        ({"temperature": 0.0}, "temperature: expected a number above 0, got 0.0"),
        ({"softcap": -1.0}, "softcap: expected a number above 0, got -1.0"),
        ({"logit_scale": 0.0}, "logit_scale: expected a number other than 0"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    arguments = {"logits": torch.ones(2, 5), "target": torch.tensor([0, 1]), **change}
    with pytest.raises((ValueError, TypeError), match=f"logprob: {message}"):
        r1kernels.logprob(**arguments)
