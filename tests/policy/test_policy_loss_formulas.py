"""Every loss against its formula as the papers write it: L only, the gradient left to autograd."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.policy import covariance
from r1kernels.policy.losses import KL_ESTIMATORS, LEVELS, LOSSES, ROLLOUT_CORRECTIONS

PPO = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "luspo", "clip_cov")
SEQUENCE_MEANS = ("grpo", "gspo", "gmpo", "sapo")
DEFAULTS = {
    "epsilon": 0.2, "delta": math.inf, "clip_ratio_c": math.inf,
    "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0,
    "ppo_kl_coef": 1.0,
}  # fmt: skip
OWN_DEFAULTS = {
    "gmpo": {"epsilon": 0.4},
    "dppo_tv": {"clip_ratio_c": 20.0},
    "dppo_kl": {"epsilon": 0.05, "clip_ratio_c": 20.0},
}


def surrogate(
    loss_type: str, new: Tensor, old: Tensor, log_ratio: Tensor, a: Tensor, picked: Tensor,
    log_rollout: Tensor, o: dict[str, float],
) -> Tensor:  # fmt: skip
    """L [n] of one sequence; log_ratio [n] is at the level that was asked for."""
    ratio = log_ratio.exp()
    low, high = 1 - o["epsilon"], 1 + o["epsilon_high"]
    if loss_type in PPO:
        gain = torch.min(ratio.clamp(max=o["delta"]) * a, ratio.clamp(low, high) * a)
        gain = torch.where(a < 0, torch.max(gain, o["clip_ratio_c"] * a), gain)
        return -gain * (~picked)
    if loss_type == "cispo":
        return -ratio.clamp(max=o["epsilon_high"]).detach() * a * new
    if loss_type == "cispo_clip":
        return -ratio.clamp(low, high).detach() * a * new
    if loss_type == "sapo":
        tau = torch.where(a > 0, o["sapo_temperature_pos"], o["sapo_temperature_neg"]).to(a)
        return -a * 4 / tau * torch.sigmoid(tau * (ratio - 1))
    if loss_type == "vespo":
        log_w = ((new - old).sum() + log_rollout.sum()).clamp(math.log(1e-8), 20)
        positive = a >= 0
        k = torch.where(positive, o["vespo_k_pos"], o["vespo_k_neg"]).to(a)
        decay = torch.where(positive, o["vespo_lambda_pos"], o["vespo_lambda_neg"]).to(a)
        phi = (decay + k * log_w - decay * log_w.exp()).exp()
        return -phi.detach() * a * new
    if loss_type == "gmpo":
        d = new - old
        inside = d.clamp(-o["epsilon"], o["epsilon_high"])
        bounded = torch.where(a > 0, torch.min(d, inside), torch.max(d, inside))
        return -a * bounded.mean().exp() if len(d) else -a
    p, p_old = new.exp(), old.exp()
    weight = ratio.clamp(max=o["clip_ratio_c"])
    if loss_type == "dppo_tv":
        kept = torch.where(a > 0, p - p_old <= o["epsilon_high"], p - p_old >= -o["epsilon"])
        return -a * (weight * kept).detach() * new
    if loss_type == "dppo_kl":
        divergence = p_old * (old - new) + (1 - p_old) * torch.log(
            (1 - p_old + 1e-8) / (1 - p + 1e-8)
        )
        up = (divergence <= o["epsilon_high"]) | (p <= p_old)
        down = (divergence <= o["epsilon"]) | (p >= p_old)
        return -a * (weight * torch.where(a > 0, up, down)).detach() * new
    if loss_type == "kl_cov":
        return -a * ratio + o["ppo_kl_coef"] * (new - old).abs() * picked
    assert loss_type == "reinforce"
    return -a * new


def divergence(estimator: str, x: Tensor) -> Tensor:
    k3 = x.exp() - x - 1
    if estimator == "k3+":
        return (k3 - x**2 / 2).detach() + x**2 / 2
    return {
        "k1": -x, "abs": x.abs(), "k2": x**2 / 2, "k3": k3, "low_var": k3.clamp(max=10),
    }[estimator]  # fmt: skip


def formula(
    logprob: Tensor,
    advantages: Tensor,
    *,
    cu_seqlens: Tensor,
    mask: Tensor,
    loss_type: str,
    old_logprob: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    sampling_logprob: Tensor | None = None,
    entropy: Tensor | None = None,
    importance_sampling_level: str | None = None,
    beta: float = 0.0,
    kl_estimator: str = "k3",
    use_bias_correction_kl: bool = False,
    entropy_coef: float = 0.0,
    rollout_correction: str | None = None,
    rollout_clip_min: float = 0.0,
    rollout_clip_max: float = 3.0,
    off_policy_mask_threshold: float | None = None,
    max_completion_length: int = 1,
    picked: Tensor | None = None,
    **options: float,
) -> Tensor:
    """The loss over the sequences of one call; ``picked`` [T]: tokens of a covariance's choice."""
    options = DEFAULTS | OWN_DEFAULTS.get(loss_type, {}) | options
    options.setdefault("epsilon_high", options["epsilon"])
    level = importance_sampling_level or ("sequence" if loss_type in ("gspo", "luspo") else "token")
    sequences: list[Any] = []
    for b, (start, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        rows = torch.arange(start, end)[mask[start:end]]
        if not len(rows):
            continue
        new = logprob[rows]
        old = new.detach() if old_logprob is None else old_logprob[rows]
        a = advantages[rows] if len(advantages) == len(logprob) else advantages[b].expand(len(rows))
        log_ratio = new - old
        if level != "token":
            log_ratio = log_ratio.mean().expand(len(rows))
        if level == "sequence_token":
            log_ratio = log_ratio.detach() + new - new.detach()
        weight = torch.ones_like(new)
        if rollout_correction is not None:
            drift = old - sampling_logprob[rows]
            if rollout_correction.startswith("sequence"):
                drift = drift.sum().expand(len(rows))
            weight = drift.exp()
            cut = weight.clamp(rollout_clip_min, rollout_clip_max)
            outside = (weight < rollout_clip_min) | (weight > rollout_clip_max)
            weight = (
                cut if rollout_correction.endswith("truncate") else weight.masked_fill(outside, 0)
            )
        chosen = torch.zeros_like(a, dtype=torch.bool) if picked is None else picked[rows]
        log_weight = weight.log().clamp(min=math.log(1e-8))
        loss = surrogate(loss_type, new, old, log_ratio, a, chosen, log_weight, options)
        if off_policy_mask_threshold is not None:
            behaviour = old if sampling_logprob is None else sampling_logprob[rows]
            away = (behaviour - new.detach()).mean()
            loss = loss * ((a >= 0) | (away <= off_policy_mask_threshold))
        if loss_type != "vespo":
            loss = loss * weight
        if beta:
            kl = divergence(kl_estimator, ref_logprob[rows] - new)
            if use_bias_correction_kl:
                kl = kl * log_ratio.exp()
            loss = loss + beta * kl
        sequences.append(loss)
    total = torch.cat([logprob[:0], *sequences]).sum()
    count = cu_seqlens.numel() - 1
    if loss_type in SEQUENCE_MEANS:
        total = sum(loss.mean() for loss in sequences) / count
    elif loss_type == "luspo":
        total = total / count
    elif loss_type == "dr_grpo":
        total = total / (count * max_completion_length)
    else:
        total = total / mask.sum()
    return total - entropy_coef * entropy[mask].mean() if entropy_coef else total


LENGTHS = (5, 0, 9, 1, 4)  # the fourth sequence is masked out
B, T = len(LENGTHS), sum(LENGTHS)
FORMS = [
    (name, level)
    for name, loss in LOSSES.items()
    for level in [level for level in loss.levels if level in LEVELS] or [None]
]
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "on-policy": {"old_logprob": None},
    "advantage by token": {"advantages": torch.randn(T, dtype=torch.float64)},
    "entropy": {"entropy_coef": 0.05},
    "bias-corrected": {"beta": 0.2, "use_bias_correction_kl": True},
    "off-policy mask": {"off_policy_mask_threshold": 0.02},
    **{name: {"beta": 0.2, "kl_estimator": name} for name in KL_ESTIMATORS},
    **{
        name: {"rollout_correction": name, "rollout_clip_min": 0.8, "rollout_clip_max": 1.3}
        for name in ROLLOUT_CORRECTIONS
    },
    "everything": {
        "beta": 0.2, "kl_estimator": "k2", "use_bias_correction_kl": True, "entropy_coef": 0.05,
        "rollout_correction": "token_truncate", "off_policy_mask_threshold": 0.02,
    },
}  # fmt: skip
MEANINGLESS = {
    *(("gmpo", change) for change in ("bias-corrected", "everything")),
    *(("vespo", change) for change in ROLLOUT_CORRECTIONS if change.startswith("sequence")),
}
OWN_OPTIONS: dict[str, list[dict[str, float]]] = {
    **{
        name: [{"delta": 1.1}, {"clip_ratio_c": 1.3}, {"epsilon": 0.05, "epsilon_high": 0.1}]
        for name in ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "luspo")
    },
    "gmpo": [{"epsilon": 0.1, "epsilon_high": 0.05}],
    "cispo": [{"epsilon_high": 0.7}],
    "cispo_clip": [{"epsilon": 0.1, "epsilon_high": 0.1}],
    "sapo": [{"sapo_temperature_pos": 2.0, "sapo_temperature_neg": 0.5}],
    "vespo": [
        {"vespo_k_pos": 1.0, "vespo_lambda_pos": 0.5, "vespo_k_neg": 0.3, "vespo_lambda_neg": 0.7}
    ],
    "dppo_tv": [{"epsilon": 0.01, "epsilon_high": 0.02, "clip_ratio_c": 1.2}],
    "dppo_kl": [{"epsilon": 0.01, "epsilon_high": 0.02, "clip_ratio_c": 1.2}],
    "kl_cov": [{"kl_cov_ratio": 0.3, "ppo_kl_coef": 0.4}],
    "clip_cov": [{"clip_cov_ratio": 0.5, "clip_cov_lb": 0.01, "clip_cov_ub": 3.0, "seed": 5}],
}


NEEDED = {
    "cispo": {"epsilon_high": 1.1},
    "clip_cov": {"clip_cov_ratio": 0.2, "clip_cov_lb": 0.0},
    "kl_cov": {"kl_cov_ratio": 0.2},
}


def make_inputs(loss_type: str) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    logprob = -2 + 0.5 * draw(T)
    mask = torch.rand(T, generator=rng) < 0.7
    mask[14] = False
    old = logprob + 0.4 * draw(T)
    return {
        "logprob": logprob,
        "advantages": draw(B),
        "cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        "old_logprob": old,
        "ref_logprob": logprob + 0.4 * draw(T),
        "sampling_logprob": old + 0.3 * draw(T),
        "mask": mask,
        "entropy": draw(T).exp(),
        "loss_type": loss_type,
        "max_completion_length": 16,
        **NEEDED.get(loss_type, {}),
    }


def chosen(inputs: dict[str, Any]) -> Tensor | None:
    """The choice of a covariance, whose own tests are elsewhere."""
    name = inputs["loss_type"]
    if name not in ("clip_cov", "kl_cov"):
        return None
    options = {key: inputs.get(key, value) for key, value in LOSSES[name].options.items()}
    options["epsilon_high"] = options.get("epsilon")
    by_row = inputs["advantages"]
    if len(by_row) == B:
        by_row = by_row.repeat_interleave(torch.tensor(LENGTHS))
    picked = covariance.select(
        name, options, inputs["logprob"], inputs["old_logprob"], by_row, inputs["mask"]
    )
    assert picked.any()
    return picked


def compare(inputs: dict[str, Any]) -> None:
    picked = chosen(inputs)
    results = []
    for function, extra in ((r1kernels.policy_loss, {}), (formula, {"picked": picked})):
        logprob, entropy = (inputs[key].clone().requires_grad_() for key in ("logprob", "entropy"))
        result = function(**(inputs | {"logprob": logprob, "entropy": entropy}), **extra)
        loss = result if isinstance(result, Tensor) else result.loss
        gradients = torch.autograd.grad(
            loss, (logprob, entropy), allow_unused=True, materialize_grads=True
        )
        results.append((loss, *gradients))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("loss_type", "level"), FORMS)
def test_value_and_gradient(loss_type: str, level: str | None, change: str) -> None:
    inputs = make_inputs(loss_type) | {"importance_sampling_level": level} | CHANGES[change]
    if (loss_type, change) not in MEANINGLESS:
        compare(inputs)
        return
    with pytest.raises(
        ValueError, match=r"policy_loss: (use_bias_correction_kl|rollout_correction)"
    ):
        r1kernels.policy_loss(**inputs)


@pytest.mark.parametrize(
    ("loss_type", "options"),
    [(name, options) for name, several in OWN_OPTIONS.items() for options in several],
)
def test_every_option_means_what_its_formula_says(
    loss_type: str, options: dict[str, float]
) -> None:
    inputs = make_inputs(loss_type)
    if loss_type in ("gspo", "luspo"):  # a mean over a sequence does not reach the bounds by itself
        inputs["old_logprob"] = inputs["old_logprob"] - 0.5
        inputs["advantages"] = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0]).double()
    default = r1kernels.policy_loss(**inputs).loss
    compare(inputs | options)
    assert r1kernels.policy_loss(**(inputs | options)).loss != default


def test_every_option_is_tried() -> None:
    tried = {
        name: {key for options in several for key in options}
        for name, several in OWN_OPTIONS.items()
    }
    for name, loss in LOSSES.items():
        assert set(loss.options) - {"epsilon", "epsilon_high"} <= tried.get(name, set())


@pytest.mark.parametrize("estimator", sorted(set(KL_ESTIMATORS) - {"k3+"}))
@pytest.mark.parametrize("level", LEVELS[:2])
@pytest.mark.parametrize("loss_type", ["grpo", "sapo"])
def test_finite_differences(loss_type: str, level: str, estimator: str) -> None:
    inputs = make_inputs(loss_type) | CHANGES["everything"] | {"kl_estimator": estimator}
    inputs["importance_sampling_level"] = level
    logprob, entropy = (inputs.pop(key).requires_grad_() for key in ("logprob", "entropy"))
    assert torch.autograd.gradcheck(
        lambda p, h: r1kernels.policy_loss(p, entropy=h, **inputs).loss, (logprob, entropy)
    )
