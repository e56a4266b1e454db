from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from r1kernels.policy import covariance


def make_covariances(rows: int) -> tuple[dict[str, Any], Tensor]:
    """Inputs of covariance.select, and the covariance of each token."""
    inputs = {
        "logprob": -2 + torch.randn(rows),
        "old_logprob": None,
        "advantage": torch.randn(rows),
        "mask": torch.rand(rows) < 0.8,
    }
    p, a = (inputs[key].where(inputs["mask"], torch.nan) for key in ("logprob", "advantage"))
    return inputs, (p - p.nanmean()) * (a - a.nanmean())


def test_kl_cov_takes_the_largest_covariances() -> None:
    inputs, cov = make_covariances(1000)
    picked = covariance.select("kl_cov", {"kl_cov_ratio": 0.05}, **inputs)
    count = int(0.05 * inputs["mask"].sum())
    largest = cov.nan_to_num(nan=-torch.inf).topk(count).indices
    assert picked.nonzero()[:, 0].tolist() == sorted(largest.tolist())


def test_clip_cov_draws_among_the_unclipped_tokens_within_its_bounds() -> None:
    inputs, cov = make_covariances(1000)
    inputs["old_logprob"] = inputs["logprob"] + 0.3 * torch.randn(1000)
    options = {
        "epsilon": 0.2, "epsilon_high": 0.2, "clip_cov_ratio": 0.02, "clip_cov_lb": 0.5,
        "clip_cov_ub": 2.0, "seed": 0,
    }  # fmt: skip
    ratio = (inputs["logprob"] - inputs["old_logprob"]).exp()
    advantage = inputs["advantage"]
    clipped = (ratio > 1.2) & (advantage > 0) | (ratio < 0.8) & (advantage < 0)
    allowed = inputs["mask"] & ~clipped & (cov > 0.5) & (cov < 2.0)
    draws = [
        covariance.select("clip_cov", options | {"seed": seed}, **inputs) for seed in range(20)
    ]
    for draw in draws:
        assert draw.sum() == int(0.02 * inputs["mask"].sum())
        assert not (draw & ~allowed).any()
    assert torch.equal(draws[0], covariance.select("clip_cov", options, **inputs))
    union = torch.stack(draws).any(0)
    assert union.sum() > 0.6 * allowed.sum()  # 1 − (1 − 15/170)^20 = 0.84 of them, or so
    few = options | {"clip_cov_ratio": 1.0}
    assert torch.equal(covariance.select("clip_cov", few, **inputs), allowed)


def test_the_draws_do_not_depend_on_the_number_of_rows() -> None:
    assert torch.equal(
        covariance.draws(100, 7, torch.device("cpu")),
        covariance.draws(300, 7, torch.device("cpu"))[:100],
    )


@pytest.mark.parametrize("loss_type", ["clip_cov", "kl_cov"])
def test_no_active_token_means_no_choice(loss_type: str) -> None:
    inputs, _ = make_covariances(10)
    inputs["mask"] = torch.zeros(10, dtype=torch.bool)
    options = {
        "epsilon": 0.2, "epsilon_high": 0.2, "clip_cov_ratio": 0.5, "clip_cov_lb": 0.0,
        "clip_cov_ub": 9.0, "seed": 0, "kl_cov_ratio": 0.5,
    }  # fmt: skip
    assert not covariance.select(loss_type, options, **inputs).any()
