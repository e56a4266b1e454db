"""Options of a policy loss as one object, and as keywords."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch

import r1kernels
from r1kernels.policy.policy_loss_options import PolicyLossOptions

GIVEN: dict[str, Any] = {"loss_type": "dapo", "epsilon": 0.1, "epsilon_high": 0.3, "beta": 0.04}


def loss(**options: Any) -> torch.Tensor:
    logprob = torch.tensor([-0.5, -1.0, -2.0, -0.1])
    return r1kernels.policy_loss(
        logprob,
        torch.tensor([1.0, -1.0]),
        cu_seqlens=torch.tensor([0, 2, 4]),
        old_logprob=logprob.flip(0),
        ref_logprob=logprob + 0.5,
        **options,
    ).loss


def fused(**options: Any) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return r1kernels.fused_linear_grpo_loss(
        torch.randn(4, 8, generator=rng),
        torch.randn(10, 8, generator=rng),
        torch.arange(4),
        advantages=torch.tensor([1.0, -1.0]),
        cu_seqlens=torch.tensor([0, 2, 4]),
        old_logprob=torch.linspace(-3, -1, 4),
        ref_logprob=torch.linspace(-1, -3, 4),
        **options,
    ).loss


@pytest.mark.parametrize("function", [loss, fused])
def test_an_object_and_its_fields_as_keywords_are_the_same(function: Any) -> None:
    found = function(options=PolicyLossOptions(**GIVEN))
    assert found == function(**GIVEN)
    assert found != function(options=replace(PolicyLossOptions(**GIVEN), beta=0.5))


@pytest.mark.parametrize("function", [loss, fused])
def test_both_at_once_are_an_error(function: Any) -> None:
    with pytest.raises(TypeError, match="options: expected PolicyLossOptions and no keywords, got"):
        function(options=PolicyLossOptions(**GIVEN), beta=0.0)
    with pytest.raises(TypeError, match="options: expected PolicyLossOptions and no keywords, got"):
        function(options=GIVEN)


def test_defaults_are_those_of_the_loss() -> None:
    assert loss(options=PolicyLossOptions()) == loss()
    assert PolicyLossOptions(loss_type="gspo").level == "sequence"
    assert PolicyLossOptions(epsilon=0.3).of_loss["epsilon_high"] == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "dappo"}, r"loss_type: .*did you mean 'dapo'"),
        ({"loss_type": "dr_grpo"}, "max_completion_length: expected a number"),
        ({"loss_type": "sapo", "epsilon": 0.2}, "epsilon: 'sapo' has no such option"),
        ({"loss_type": "gmpo", "use_bias_correction_kl": True}, "use_bias_correction_kl: expected"),
        ({"rollout_clip_max": 2.0}, "rollout_clip_max: expected None without rollout_correction"),
        ({"kl_estimator": "k4"}, "kl_estimator: expected one of"),
    ],
)
def test_errors_name_the_option_and_what_was_called(options: dict[str, Any], message: str) -> None:
    for name, call in (
        ("PolicyLossOptions", PolicyLossOptions),
        ("policy_loss", loss),
        ("fused_linear_grpo_loss", fused),
    ):
        with pytest.raises(ValueError, match=f"^{name}: {message}"):
            call(**options)


def test_options_are_nobodys_to_change() -> None:
    with pytest.raises(FrozenInstanceError):
        PolicyLossOptions().beta = 1.0  # type: ignore[misc]
