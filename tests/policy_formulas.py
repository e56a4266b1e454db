"""Every loss as its papers write it: L only, padded loops, the gradient left to autograd.

Written without the package's own code, one sequence at a time, so that it can be wrong only by
itself; ``test_policy_loss.py`` compares the two.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

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


def policy_loss(
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
