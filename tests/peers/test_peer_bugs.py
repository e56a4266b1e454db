"""What users of other libraries ran into: one test for each, named after its report."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.policy.losses import LOSSES

T, H, V = 12, 16, 41
STARTS = torch.tensor([0, 5, 9, 12])
TRAINED = ("hidden", "weight")


def make(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    return {
        "hidden": draw(T, H).requires_grad_(),
        "weight": (draw(V, H) / 4).requires_grad_(),
        "target": torch.randint(V, (T,), generator=rng),
    }


def dense(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return (hidden @ weight.T).log_softmax(-1).gather(1, target[:, None])[:, 0]


def clip(loss_type: str) -> dict[str, float]:
    """Options of a loss type that its test data needs, for those that have them."""
    wanted = {"epsilon_high": 0.28, "clip_cov_lb": 0.01, "clip_cov_ub": 100.0}
    return {key: wanted[key] for key in wanted if key in LOSSES[loss_type].options}


def gradients(loss: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [inputs[name] for name in TRAINED])


def test_liger_1082_the_importance_ratio_is_part_of_the_fused_gradient() -> None:
    inputs, advantages = make(), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    logprob = dense(**inputs)
    old = logprob.detach() - 0.15  # ratio 1.16 in every row, inside the clip
    fused = r1kernels.fused_linear_grpo_loss(
        **inputs, advantages=advantages, cu_seqlens=STARTS, old_logprob=old, loss_type="dapo"
    ).loss
    lengths = STARTS.diff()
    plain = -((logprob - old).exp() * advantages.repeat_interleave(lengths)).sum() / T
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(gradients(fused, inputs), gradients(plain, inputs))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_trl_5619_and_6024_the_normaliser_is_that_of_the_whole_step(loss_type: str) -> None:
    logprob = make()["hidden"][:, 0]
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def loss(first: int, last: int) -> Tensor:
        rows = slice(int(STARTS[first]), int(STARTS[last]))
        return r1kernels.policy_loss(
            logprob[rows],
            advantages[first:last],
            cu_seqlens=STARTS[first : last + 1] - STARTS[first],
            loss_type=loss_type,
            num_active_tokens=T,
            num_sequences=3,
            max_completion_length=5,
        ).loss

    torch.testing.assert_close(loss(0, 1) + loss(1, 3), loss(0, 3))


def test_trl_6808_no_loss_type_is_another_under_a_new_name() -> None:
    rng = torch.Generator().manual_seed(0)
    logprob = -2 * torch.rand(T, generator=rng, dtype=torch.float64)
    old = logprob + 0.3 * torch.randn(T, generator=rng, dtype=torch.float64)
    found = {}
    for loss_type in LOSSES:
        leaf = logprob.clone().requires_grad_()
        # Unequal advantages in a sequence, so that token and sequence means differ.
        loss = r1kernels.policy_loss(
            leaf,
            3 * torch.randn(T, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
            cu_seqlens=STARTS,
            old_logprob=old,
            loss_type=loss_type,
            max_completion_length=7,
            num_active_tokens=20.0,
            **clip(loss_type),
        ).loss
        found[loss_type] = torch.autograd.grad(loss, leaf)[0]
    for (a, x), (b, y) in itertools.combinations(found.items(), 2):
        assert not torch.allclose(x, y), f"{a} and {b} have the same gradient"
    with pytest.raises(ValueError, match=r"loss_type: expected one of grpo.*got 'dapo_grpo'"):
        r1kernels.policy_loss(
            logprob, torch.ones(3).double(), cu_seqlens=STARTS, loss_type="dapo_grpo"
        )


@pytest.mark.parametrize("far", [1e4, torch.inf, torch.nan])
def test_trl_3015_and_openrlhf_1335_padding_may_hold_anything(far: float) -> None:
    logprob = torch.zeros(T, dtype=torch.float64) - 1
    mask = torch.ones(T, dtype=torch.bool)
    mask[[3, 8]] = False
    old, ref = logprob + 0.1, logprob - 0.1
    options: dict[str, Any] = {"cu_seqlens": STARTS, "mask": mask, "beta": 0.1}
    results = []
    for filling in (0.0, far, -far):
        new, previous, reference = (
            values.masked_fill(~mask, filling) for values in (logprob, old, ref)
        )
        new.requires_grad_()
        loss = r1kernels.policy_loss(
            new, torch.ones(3).double(), old_logprob=previous, ref_logprob=reference, **options
        ).loss
        results.append((loss.detach(), torch.autograd.grad(loss, new)[0]))
    assert all(torch.isfinite(value).all() for result in results for value in result)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=0)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_trl_3015_and_openrlhf_1335_no_ratio_overflows(loss_type: str) -> None:
    logprob = torch.full((T,), -1.0).requires_grad_()
    far = torch.tensor([500.0, -500.0, 90.0]).repeat(T // 3)
    loss = r1kernels.policy_loss(
        logprob,
        torch.tensor([1.0, -1.0, 2.0]),
        cu_seqlens=STARTS,
        old_logprob=logprob.detach() + far,
        ref_logprob=logprob.detach() + far,
        loss_type=loss_type,
        beta=0.1,
        max_completion_length=7,
        **clip(loss_type),
    ).loss
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, logprob)[0]).all()


def test_unsloth_593_and_trl_5691_scale_then_softcap_then_temperature() -> None:
    inputs = make()
    logits = inputs["hidden"] @ inputs["weight"].T
    plain = (torch.tanh(logits * 1.7 / 2.0) * 2.0 / 0.6).log_softmax(-1)
    plain = plain.gather(1, inputs["target"][:, None])[:, 0]
    fused = r1kernels.linear_logprob(**inputs, temperature=0.6, logit_scale=1.7, softcap=2.0)
    torch.testing.assert_close(fused.logprob, plain)
    torch.testing.assert_close(
        gradients(fused.logprob.sum(), inputs), gradients(plain.sum(), inputs)
    )


def test_trl_6625_the_entropy_bonus_has_a_gradient() -> None:
    inputs = make()
    fused = r1kernels.fused_linear_grpo_loss(
        **inputs,
        advantages=torch.zeros(3, dtype=torch.float64),
        cu_seqlens=STARTS,
        entropy_coef=0.3,
    ).loss
    logp = (inputs["hidden"] @ inputs["weight"].T).log_softmax(-1)
    plain = -0.3 * -(logp.exp() * logp).sum(-1).mean()
    got = gradients(fused, inputs)
    torch.testing.assert_close(got, gradients(plain, inputs))
    assert got[0].abs().max() > 1e-4


def test_liger_1298_without_reduction_the_weight_gets_its_gradient() -> None:
    inputs = make()
    upstream = torch.arange(float(T), dtype=torch.float64)
    fused = r1kernels.linear_cross_entropy(**inputs, reduction="none")
    plain = -dense(**inputs)
    torch.testing.assert_close(
        gradients(fused @ upstream, inputs), gradients(plain @ upstream, inputs)
    )


def test_liger_1366_compiles_with_python_numbers_as_options() -> None:
    inputs = make(torch.float32)

    def loss(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> Tensor:
        return r1kernels.linear_logprob(hidden, weight, target, temperature=temperature).logprob

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for temperature in (0.7, 0.9, 1.3):  # the second turns the number into a symbol
        got, expected = (f(**inputs, temperature=temperature) for f in (compiled, loss))
        torch.testing.assert_close(got, expected)
