"""The same numbers as verl's own loss, KL and advantage functions.

Where they differ, and why ours stays as it is:

- verl's means over sequences leave out sequences without an active token; ours (and TRL's) count
  them. Here every sequence has one.
- verl's "k3" is bounded to ±10, which is ours under the name "low_var".
- A group of one has no baseline: verl gives it its bare reward, we (and TRL) advantage 0.
- verl weighs batch whitening by tokens, ours by completions. Here completions are equally long.
- verl's Clip-Cov draws from PyTorch's global generator, ours from a seed: equal when all are drawn.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from tests.verl_formulas import ActorConfig, core_algos

LENGTHS = (5, 9, 1, 4)
B, LONGEST = len(LENGTHS), max(LENGTHS)
REAL = torch.tensor(LENGTHS)[:, None] > torch.arange(LONGEST)  # [B, LONGEST], as rows are packed
STARTS = torch.tensor([0, *LENGTHS]).cumsum(0)

# (verl's loss, its settings, its averaging, our loss, our options)
DAPO, MEANS = "token-mean", "seq-mean-token-mean"
LOSSES: list[tuple[str, dict[str, Any], str, str, dict[str, Any]]] = [
    ("vanilla", {"clip_ratio_c": 3.0}, DAPO, "dapo", {"clip_ratio_c": 3.0}),
    ("vanilla", {"clip_ratio_c": 1.5}, MEANS, "grpo", {"clip_ratio_c": 1.5}),
    ("vanilla", {}, "seq-mean-token-sum", "luspo",
     {"clip_ratio_c": 3.0, "importance_sampling_level": "token"}),
    ("vanilla", {"scale": 16}, "seq-mean-token-sum-norm", "dr_grpo",
     {"clip_ratio_c": 3.0, "max_completion_length": 16}),
    ("gspo", {}, MEANS, "gspo", {"importance_sampling_level": "sequence_token"}),
    ("sapo", {"tau_pos": 1.0, "tau_neg": 1.05}, MEANS, "sapo", {}),
    ("cispo", {}, DAPO, "cispo_clip", {}),
    ("geo_mean", {}, MEANS, "gmpo", {}),
    ("gpg", {}, DAPO, "reinforce", {}),
    ("dppo_tv", {}, DAPO, "dppo_tv", {}),
    ("dppo_kl", {}, DAPO, "dppo_kl", {}),
    ("kl_cov", {"kl_cov_ratio": 0.3}, DAPO, "kl_cov", {"kl_cov_ratio": 0.3}),
    ("clip_cov", {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.1}, DAPO, "clip_cov",
     {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.1}),
]  # fmt: skip
UNCLIPPED = {"sapo", "reinforce", "kl_cov"}


@pytest.fixture(scope="module")
def verl() -> Any:
    return core_algos()


@pytest.mark.parametrize("corrected", [False, True], ids=["", "rollout-weights"])
@pytest.mark.parametrize(
    ("theirs", "settings", "average", "ours", "options"),
    LOSSES,
    ids=[f"{row[0]}-{row[3]}" for row in LOSSES],
)
def test_loss_and_gradient(
    verl: Any,
    theirs: str,
    settings: dict[str, Any],
    average: str,
    ours: str,
    options: dict[str, Any],
    corrected: bool,
) -> None:
    if corrected and theirs == "geo_mean":
        pytest.skip("verl weighs a sequence by the geometric mean of its tokens' weights")
    rng = torch.Generator().manual_seed(3)

    def draw() -> Tensor:
        return torch.randn(B, LONGEST, generator=rng, dtype=torch.float64)

    logprob = (-2 + draw()).clamp(max=-0.05).requires_grad_()
    old = (logprob.detach() + 0.4 * draw()).clamp(max=-0.01)
    sampling = (old + 0.4 * draw()).clamp(max=-0.01)
    advantages = 2 * torch.randn(B, generator=rng, dtype=torch.float64)
    mask = REAL.clone()
    mask[1, 2:4] = False  # tokens of a tool
    epsilon, epsilon_high = (0.05, 0.06) if theirs.startswith("dppo") else (0.2, 0.28)
    policy_loss = SimpleSettings(settings)
    config = ActorConfig(
        clip_ratio=epsilon,
        clip_ratio_low=epsilon,
        clip_ratio_high=epsilon_high,
        global_batch_info={"loss_scale_factor": settings.get("scale")},
        policy_loss=policy_loss,
        **{key: value for key, value in settings.items() if key != "scale"},
    )
    weights = (old - sampling).exp().clamp(max=1.5) if corrected else None
    expected, _ = verl.get_policy_loss_fn(theirs)(
        old,
        logprob,
        advantages[:, None].expand(B, LONGEST),
        mask.double(),
        average,
        config,
        weights,
    )
    if ours not in UNCLIPPED:
        options = {"epsilon": epsilon, "epsilon_high": epsilon_high, **options}
    if corrected:
        options = {"rollout_correction": "token_truncate", "rollout_clip_max": 1.5, **options}
    got = r1kernels.policy_loss(
        logprob[REAL],
        advantages,
        cu_seqlens=STARTS,
        old_logprob=old[REAL],
        sampling_logprob=sampling[REAL],
        mask=mask[REAL],
        loss_type=ours,
        **options,
    ).loss
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)  # verl adds 1e-8 to counts
    gradients = [torch.autograd.grad(loss, logprob)[0] for loss in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
    assert gradients[0].count_nonzero() > 5


class SimpleSettings:
    """verl reads settings that were not given as None."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.__dict__.update(settings)

    def __getattr__(self, name: str) -> None:
        return None


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("k1", "k1"), ("abs", "abs"), ("k2", "k2"), ("k3", "low_var"), ("k3+", "k3+")],
)
def test_kl_estimator(verl: Any, theirs: str, ours: str) -> None:
    rows = 40
    logprob = torch.linspace(-4.0, -0.1, rows, dtype=torch.float64).requires_grad_()
    far = 3.0 if ours == "low_var" else 1.0  # beyond the bound of verl's k3
    ref = logprob.detach() + far * torch.linspace(-1.0, 1.0, rows, dtype=torch.float64)
    expected = verl.kl_penalty(logprob, ref, theirs).sum() / rows
    got = r1kernels.policy_loss(
        logprob,
        torch.zeros(1, dtype=torch.float64),
        cu_seqlens=torch.tensor([0, rows]),
        ref_logprob=ref,
        kl_estimator=ours,
        beta=1.0,
        loss_type="dapo",
    ).loss
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got, logprob), torch.autograd.grad(expected, logprob)
    )


@pytest.mark.parametrize(
    ("theirs", "scale", "baseline"),
    [
        ("compute_grpo_outcome_advantage", "group", "mean"),
        ("compute_rloo_outcome_advantage", "none", "rloo"),
        ("compute_opo_outcome_advantage", "none", "opo"),
    ],
)
def test_advantage(verl: Any, theirs: str, scale: str, baseline: str) -> None:
    rng = torch.Generator().manual_seed(0)
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    rewards = torch.rand(len(groups), generator=rng, dtype=torch.float64)
    lengths = torch.randint(1, 9, (len(groups),), generator=rng)
    mask = (lengths[:, None] > torch.arange(8)).double()
    tokens = torch.zeros(len(groups), 8, dtype=torch.float64)
    tokens[:, 0] = rewards
    expected, _ = getattr(verl, theirs)(tokens, mask, groups.numpy(), epsilon=1e-4)
    options = {"lengths": lengths} if baseline == "opo" else {}
    got = r1kernels.group_advantage(
        rewards, groups, scale=scale, baseline=baseline, eps=1e-4, **options
    )
    torch.testing.assert_close(got, expected[:, 0])
