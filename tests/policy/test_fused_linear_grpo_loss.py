from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.head.linear_logprob import LINEAR_LOGPROB
from r1kernels.policy.group_advantage import BASELINES
from r1kernels.policy.losses import LEVELS, LOSSES

LENGTHS = (5, 0, 9, 4)
B, T, H, V = len(LENGTHS), sum(LENGTHS), 8, 37
NEEDED = {
    "cispo": {"epsilon_high": 1.1},
    "clip_cov": {"clip_cov_ratio": 0.2, "clip_cov_lb": 0.0},
    "dr_grpo": {"max_completion_length": 16},
    "kl_cov": {"kl_cov_ratio": 0.2},
}
HEAD = {"temperature": 0.7, "logit_scale": 1.5, "softcap": 3.0}


def make_inputs(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "hidden": torch.randn(T, H, dtype=dtype, requires_grad=True),
        "weight": (torch.randn(V, H, dtype=dtype) / H**0.5).requires_grad_(),
        "bias": torch.randn(V, dtype=dtype, requires_grad=True),
        "target": torch.randint(V, (T,)),
        "advantages": torch.tensor([1.0, -1.0, 0.0, -0.7], dtype=dtype),
        "cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        "mask": torch.rand(T) < 0.7,
    }


def composed(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    advantages: Tensor,
    bias: Tensor,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    **options: Any,
) -> Tensor:
    """The same thing with whole logits, and every row computed."""
    z = (hidden @ weight.T + bias) * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    distribution = torch.distributions.Categorical(logits=z / temperature)
    return r1kernels.policy_loss(
        distribution.log_prob(target), advantages, entropy=distribution.entropy(), **options
    ).loss


def check(inputs: dict[str, Any], got: Tensor) -> None:
    expected = composed(**inputs)
    torch.testing.assert_close(got, expected)
    wanted = [inputs[key] for key in ("hidden", "weight", "bias") if inputs[key].requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(got, wanted, retain_graph=True), torch.autograd.grad(expected, wanted)
    )


@pytest.mark.parametrize("head", [{}, HEAD], ids=["plain", "scaled"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_equals_the_composition(loss_type: str, head: dict[str, float]) -> None:
    inputs = make_inputs() | head | {"loss_type": loss_type} | NEEDED.get(loss_type, {})
    inputs["old_logprob"] = -3 + torch.randn(T)
    check(inputs, r1kernels.fused_linear_grpo_loss(**inputs).loss)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_rows_that_an_option_cuts_off_stay_right(loss_type: str, frozen: bool) -> None:
    inputs = make_inputs() | {"loss_type": loss_type} | NEEDED.get(loss_type, {})
    inputs["weight"].requires_grad_(not frozen)
    inputs["bias"].requires_grad_(not frozen)
    old = r1kernels.fused_linear_grpo_loss(**inputs).logprob + 0.3 * torch.randn(T)
    inputs |= {"old_logprob": old, "sampling_logprob": old + torch.randn(T)}
    inputs |= {"rollout_correction": "token_mask", "off_policy_mask_threshold": 0.1}
    result = r1kernels.fused_linear_grpo_loss(**inputs)
    assert result.metrics["rollout_weight_mean"] < 1
    check(inputs, result.loss)


def test_importance_ratio_is_not_dropped() -> None:
    inputs = make_inputs()
    new = r1kernels.fused_linear_grpo_loss(**inputs).logprob
    old = new - 2.0  # negative advantages: nothing is clipped, every gradient is e² as large
    inputs["advantages"] = -torch.ones(B)
    far = r1kernels.fused_linear_grpo_loss(**inputs, old_logprob=old)
    near = r1kernels.fused_linear_grpo_loss(**inputs)
    check(inputs | {"old_logprob": old}, far.loss)
    (large,) = torch.autograd.grad(far.loss, inputs["hidden"])
    (small,) = torch.autograd.grad(near.loss, inputs["hidden"])
    torch.testing.assert_close(large, torch.e**2 * small)


def test_kl_alone_has_a_gradient_at_zero_advantage() -> None:
    inputs = make_inputs() | {"advantages": torch.zeros(B), "beta": 0.1}
    inputs["ref_logprob"] = -3 + torch.randn(T)
    result = r1kernels.fused_linear_grpo_loss(**inputs)
    check(inputs, result.loss)
    assert (torch.autograd.grad(result.loss, inputs["hidden"])[0] != 0).any()


def test_entropy_alone_has_a_gradient_at_zero_advantage() -> None:
    inputs = make_inputs() | {"advantages": torch.zeros(B), "entropy_coef": 0.1}
    result = r1kernels.fused_linear_grpo_loss(**inputs)
    check(inputs, result.loss)
    assert (torch.autograd.grad(result.loss, inputs["hidden"])[0] != 0).any()


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_frozen_head(beta: float) -> None:
    inputs = make_inputs() | {"beta": beta, "ref_logprob": -3 + torch.randn(T)}
    inputs["weight"].requires_grad_(False)
    inputs["bias"].requires_grad_(False)
    result = r1kernels.fused_linear_grpo_loss(**inputs)
    assert result.regime == "frozen_head"
    check(inputs, result.loss)


def test_rows_with_a_temperature_and_candidates_of_their_own() -> None:
    inputs = make_inputs(torch.float64)
    hidden, weight, bias = inputs["hidden"], inputs["weight"], inputs["bias"]
    temperature = 0.5 + torch.rand(T, dtype=torch.float64)
    allowed = (torch.rand(T, V) < 0.3).scatter(1, inputs["target"][:, None], True)
    fused = r1kernels.fused_linear_grpo_loss(
        **inputs,
        temperature=temperature,
        candidate_ids=allowed.nonzero()[:, 1],
        candidate_offsets=torch.cat([torch.zeros(1).long(), allowed.sum(1).cumsum(0)]),
    ).loss
    z = ((hidden @ weight.T + bias) / temperature[:, None]).masked_fill(~allowed, -torch.inf)
    logprob = z.log_softmax(-1).gather(1, inputs["target"][:, None])[:, 0]
    options = {key: inputs[key] for key in ("advantages", "cu_seqlens", "mask")}
    plain = r1kernels.policy_loss(logprob, **options).loss
    torch.testing.assert_close(fused, plain)
    leaves = (hidden, weight, bias)
    torch.testing.assert_close(
        torch.autograd.grad(fused, leaves), torch.autograd.grad(plain, leaves)
    )


@pytest.mark.parametrize("level", LEVELS)
def test_advantages_by_token(level: str) -> None:
    advantages = torch.randn(T).where(torch.rand(T) < 0.5, 0)
    inputs = make_inputs() | {"advantages": advantages, "importance_sampling_level": level}
    check(inputs, r1kernels.fused_linear_grpo_loss(**inputs).loss)


@pytest.mark.parametrize("baseline", BASELINES)
def test_rewards_become_group_advantages(baseline: str) -> None:
    inputs = make_inputs()
    given = {"rewards": torch.tensor([1.0, 0.0, 0.0, 0.5]), "group_ids": torch.tensor([3, 3, 1, 1])}
    lengths = torch.stack([m.sum() for m in inputs["mask"].split(LENGTHS)])
    inputs["advantages"] = r1kernels.group_advantage(
        **given, baseline=baseline, lengths=lengths if baseline == "opo" else None
    )
    expected = r1kernels.fused_linear_grpo_loss(**inputs)
    inputs |= {"advantages": None, "baseline": baseline} | given
    got = r1kernels.fused_linear_grpo_loss(**inputs)
    torch.testing.assert_close(got[:4], expected[:4])


def test_outputs() -> None:
    inputs = make_inputs()
    result = r1kernels.fused_linear_grpo_loss(**inputs, entropy=True)
    whole = r1kernels.linear_logprob(
        inputs["hidden"], inputs["weight"], inputs["target"], bias=inputs["bias"], entropy=True
    )
    torch.testing.assert_close(result.logprob, whole.logprob.detach().where(inputs["mask"], 0))
    torch.testing.assert_close(result.entropy, whole.entropy.detach().where(inputs["mask"], 0))
    assert "entropy" in result.metrics
    assert result.loss.requires_grad
    assert not result.logprob.requires_grad
    assert not result.entropy.requires_grad
    assert r1kernels.fused_linear_grpo_loss(**inputs).entropy is None
    with torch.no_grad():
        assert r1kernels.fused_linear_grpo_loss(**inputs).regime == "forward_only"


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_masked_rows_may_hold_anything(value: float, frozen: bool) -> None:
    inputs = make_inputs()
    inputs["weight"].requires_grad_(not frozen)
    inputs["bias"].requires_grad_(not frozen)
    leaves = [inputs[key] for key in ("hidden", "weight", "bias") if inputs[key].requires_grad]
    clean = r1kernels.fused_linear_grpo_loss(**inputs)
    expected = torch.autograd.grad(clean.loss, leaves)
    with torch.no_grad():
        inputs["hidden"][~inputs["mask"]] = value
    inputs["target"][~inputs["mask"]] = -100
    dirty = r1kernels.fused_linear_grpo_loss(**inputs)
    torch.testing.assert_close(dirty[:4], clean[:4])
    torch.testing.assert_close(torch.autograd.grad(dirty.loss, leaves), expected)


def test_rows_without_advantage_are_announced_to_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    cpp = LINEAR_LOGPROB.implementations["cpp"]
    noting = replace(cpp, run=lambda *args: kept.append(args[4]) or cpp.run(*args))
    monkeypatch.setitem(LINEAR_LOGPROB.implementations, "cpp", noting)
    inputs = make_inputs()
    r1kernels.fused_linear_grpo_loss(**inputs)
    r1kernels.fused_linear_grpo_loss(**inputs, beta=0.1, ref_logprob=torch.zeros(T))
    r1kernels.fused_linear_grpo_loss(**inputs, entropy_coef=0.1)
    r1kernels.fused_linear_grpo_loss(**inputs, loss_type="kl_cov")
    assert kept[0].tolist() == [True] * 5 + [False] * 9 + [True] * 4
    assert kept[1:] == [None] * 3


@pytest.mark.parametrize("mode", ["advantages", "rewards"])
def test_compiles_whole_with_dynamic_shapes(mode: str) -> None:
    torch.compiler.reset()
    inputs = make_inputs()
    if mode == "rewards":
        inputs |= {"advantages": None, "rewards": torch.rand(B), "group_ids": torch.ones(B).long()}
    else:
        inputs |= {"beta": 0.1, "entropy_coef": 0.1, "ref_logprob": torch.zeros(T)}
    compiled = torch.compile(
        r1kernels.fused_linear_grpo_loss, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    expected, got = r1kernels.fused_linear_grpo_loss(**inputs), compiled(**inputs)
    torch.testing.assert_close(got[:4], expected[:4])
    torch.testing.assert_close(
        torch.autograd.grad(got.loss, inputs["hidden"]),
        torch.autograd.grad(expected.loss, inputs["hidden"]),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantages": None}, "expected either advantages, or rewards and group_ids; got neither"),
        ({"rewards": torch.zeros(B)}, "expected either advantages, .*; got both"),
        ({"advantages": None, "rewards": torch.zeros(B)}, "group_ids: expected a tensor"),
        ({"advantages": None, "group_ids": torch.zeros(B).long()}, "rewards: expected a tensor"),
        ({"advantages": torch.zeros(B + 1)}, r"advantages: expected B = 4 .*, got \[5\]"),
        (
            {"cu_seqlens": torch.tensor([0, 5, 5, 9, 12])},
            "cu_seqlens: .* end at T = 18, got 0 … 12",
        ),
        ({"cu_seqlens": torch.zeros(0).int()}, "cu_seqlens: expected at least one element"),
        ({"target": torch.zeros(T)}, "target: expected dtype int64 or int32, got float32"),
        ({"target": torch.full((T,), -100), "mask": None}, r"target\[0\]: .* < 37, got -100"),
        ({"mask": torch.ones(T)}, "mask: expected dtype bool"),
        ({"loss_type": "ppo"}, "loss_type: expected one of grpo, "),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        r1kernels.fused_linear_grpo_loss(**(make_inputs() | change))


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilom'"):
        r1kernels.fused_linear_grpo_loss(**make_inputs(), epsilom=0.2)
