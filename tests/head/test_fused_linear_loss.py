from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels

T, H, V = 18, 8, 37
HEAD = {"temperature": 0.7, "logit_scale": 1.5, "softcap": 3.0}


def make_inputs(*, frozen: bool = False) -> dict[str, Any]:
    return {
        "hidden": torch.randn(T, H, requires_grad=True),
        "weight": (torch.randn(V, H) / H**0.5).requires_grad_(not frozen),
        "bias": torch.randn(V, requires_grad=not frozen),
        "target": torch.randint(V, (T,)),
        "mask": torch.rand(T) < 0.7,
    }


def composed(
    hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor, mask: Tensor, **head: float
) -> tuple[Tensor, Tensor]:
    """logprob and entropy with whole logits."""
    z = (hidden @ weight.T + bias) * head.get("logit_scale", 1.0)
    if "softcap" in head:
        z = head["softcap"] * torch.tanh(z / head["softcap"])
    distribution = torch.distributions.Categorical(logits=z / head.get("temperature", 1.0))
    return tuple(v.where(mask, 0) for v in (distribution.log_prob(target), distribution.entropy()))


def squared(logprob: Tensor) -> Tensor:
    """No loss of the package's."""
    return (logprob.exp() - 0.3).square().sum()


def squared_with_entropy(logprob: Tensor, entropy: Tensor) -> Tensor:
    return squared(logprob) - (entropy * logprob.detach()).mean()


@pytest.mark.parametrize("head", [{}, HEAD], ids=["plain", "scaled"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
def test_equals_the_composition_in_every_regime(
    entropy: bool, frozen: bool, head: dict[str, float]
) -> None:
    inputs = make_inputs(frozen=frozen)
    loss_fn = squared_with_entropy if entropy else squared
    got = r1kernels.fused_linear_loss(loss_fn=loss_fn, entropy=entropy, **inputs, **head)
    outputs = composed(**inputs, **head)
    expected = loss_fn(*outputs if entropy else outputs[:1])
    leaves = [inputs[key] for key in ("hidden", "weight", "bias") if inputs[key].requires_grad]
    torch.testing.assert_close(got.loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, leaves), torch.autograd.grad(expected, leaves)
    )
    assert got.regime == (
        "frozen_head" if frozen and not entropy
        else "recompute" if entropy or head
        else "kept"
    )  # fmt: skip
    torch.testing.assert_close(got.logprob, outputs[0].detach())
    assert not got.logprob.requires_grad
    assert (got.entropy is None) != entropy


def test_a_loss_of_the_package_through_it_is_the_fused_one() -> None:
    inputs, cu_seqlens = make_inputs(), torch.tensor([0, 5, T])
    advantages, mask = torch.tensor([1.0, -1.0]), inputs["mask"]
    own = r1kernels.fused_linear_loss(
        loss_fn=lambda logprob: (
            r1kernels.policy_loss(logprob, advantages, cu_seqlens=cu_seqlens, mask=mask).loss
        ),
        **inputs,
    )
    fused = r1kernels.fused_linear_grpo_loss(**inputs, advantages=advantages, cu_seqlens=cu_seqlens)
    assert torch.equal(own.loss, fused.loss)
    grads = [torch.autograd.grad(result.loss, inputs["weight"])[0] for result in (own, fused)]
    assert torch.equal(*grads)


def test_without_gradients_it_is_forward_only() -> None:
    with torch.no_grad():
        result = r1kernels.fused_linear_loss(loss_fn=squared, **make_inputs())
    assert result.regime == "forward_only"
    assert not result.loss.requires_grad


def test_compiles_whole_with_dynamic_shapes() -> None:
    torch.compiler.reset()
    compiled = torch.compile(
        r1kernels.fused_linear_loss, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    inputs = make_inputs()
    arguments = {"loss_fn": squared_with_entropy, "entropy": True, **inputs}
    expected, got = r1kernels.fused_linear_loss(**arguments), compiled(**arguments)
    torch.testing.assert_close(got[:3], expected[:3])
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, inputs["hidden"]),
        torch.autograd.grad(expected.loss, inputs["hidden"]),
    )


@pytest.mark.parametrize("returned", [torch.zeros(T), 1.0, None])
def test_a_loss_that_is_no_number_is_named(returned: Any) -> None:
    with pytest.raises(ValueError, match="fused_linear_loss: loss_fn: expected a 0-d tensor, got"):
        r1kernels.fused_linear_loss(loss_fn=lambda logprob: returned, **make_inputs())


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match="fused_linear_loss: mask: expected dtype bool"):
        r1kernels.fused_linear_loss(loss_fn=squared, **make_inputs() | {"mask": torch.ones(T)})
