from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor

import r1kernels


def naive(rewards: Tensor, ids: Tensor, scale: str, baseline: str, eps: float) -> Tensor:
    everyone = rewards.double().tolist()
    out = []
    for me, (reward, group) in enumerate(zip(everyone, ids.tolist(), strict=True)):
        members = [r for r, g in zip(everyone, ids.tolist(), strict=True) if g == group]
        others = [
            r for i, r in enumerate(everyone) if ids[i] == group and (i != me or baseline == "mean")
        ]
        if max(members) == min(members):
            out.append(0.0)
            continue
        advantage = reward - statistics.fmean(others)
        if scale != "none":
            advantage /= statistics.stdev(members if scale == "group" else everyone) + eps
        out.append(advantage)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("baseline", ["mean", "rloo"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_formula(scale: str, baseline: str, dtype: torch.dtype) -> None:
    ids = torch.randint(-3, 4, (40,)) * 1_000_000_007
    rewards = torch.randn(40, dtype=dtype)
    got = r1kernels.group_advantage(rewards, ids, scale=scale, baseline=baseline, eps=1e-3)
    assert got.dtype == dtype
    torch.testing.assert_close(got, naive(rewards, ids, scale, baseline, 1e-3).to(dtype))


def test_does_not_depend_on_the_order_of_the_batch_or_the_numbers_of_the_groups() -> None:
    rewards, ids = torch.rand(60), torch.randint(9, (60,))
    shuffle = torch.randperm(60)
    one = r1kernels.group_advantage(rewards, ids)
    two = r1kernels.group_advantage(rewards[shuffle], (17 - 5 * ids[shuffle]).int())
    assert torch.equal(one[shuffle], two)


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_zero_however_they_round(reward: float, scale: str) -> None:
    rewards, ids = torch.full((7,), reward), torch.zeros(7, dtype=torch.int64)
    other = torch.tensor([0.0, 1.0])
    rewards, ids = torch.cat([rewards, other]), torch.cat([ids, torch.ones(2, dtype=torch.int64)])
    got = r1kernels.group_advantage(rewards, ids, scale=scale)
    assert (got[:7] == 0).all()
    assert (got[7:] != 0).all()


def test_a_tiny_spread_is_not_a_constant_group() -> None:
    rewards = torch.tensor([1.0, 1.0 + 2**-23])
    got = r1kernels.group_advantage(rewards, torch.zeros(2, dtype=torch.int64), scale="none")
    assert got.tolist() == [-(2**-24), 2**-24]


@pytest.mark.parametrize("baseline", ["mean", "rloo"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_lone_completion_gets_zero(scale: str, baseline: str) -> None:
    rewards, ids = torch.tensor([3.0, 0.0, 1.0]), torch.tensor([7, 2, 2])
    got = r1kernels.group_advantage(rewards, ids, scale=scale, baseline=baseline)
    assert got[0] == 0
    assert got.isfinite().all()


def test_no_completions() -> None:
    assert r1kernels.group_advantage(torch.empty(0), torch.empty(0).long()).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": torch.tensor([1.0, torch.nan])}, r"rewards\[1\]: expected a finite number"),
        ({"rewards": torch.tensor([torch.inf, 1.0])}, r"rewards\[0\]: expected a finite number"),
        ({"rewards": torch.ones(2, 1)}, r"rewards: expected shape \[B\], got \[2, 1\]"),
        (
            {"rewards": torch.ones(2).long()},
            "rewards: expected dtype float32 or float64, got int64",
        ),
        ({"group_ids": torch.zeros(3).long()}, r"group_ids: expected B = 2 .*, got \[3\]"),
        ({"group_ids": torch.zeros(2)}, "group_ids: expected dtype int64 or int32, got float32"),
        ({"scale": "std"}, "scale: expected one of group, batch, none; got 'std'"),
        ({"baseline": "max"}, "baseline: expected one of mean, rloo; got 'max'"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    arguments = {"rewards": torch.ones(2), "group_ids": torch.zeros(2).long(), **change}
    with pytest.raises((ValueError, TypeError), match=f"group_advantage: {message}"):
        r1kernels.group_advantage(**arguments)
