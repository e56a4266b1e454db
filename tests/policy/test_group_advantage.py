from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor

import r1kernels


def naive(
    rewards: Tensor, ids: Tensor, lengths: Tensor, scale: str, baseline: str, eps: float
) -> Tensor:
    everyone = rewards.double().tolist()
    out = []
    for me, (reward, group) in enumerate(zip(everyone, ids.tolist(), strict=True)):
        members = [r for r, g in zip(everyone, ids.tolist(), strict=True) if g == group]
        others = [
            r for i, r in enumerate(everyone) if ids[i] == group and (i != me or baseline != "rloo")
        ]
        if max(members) == min(members):
            out.append(0.0)
            continue
        centre = statistics.fmean(others)
        if baseline == "opo":
            weights = lengths[ids == group].double()
            centre = float((weights * torch.tensor(members).double()).sum() / weights.sum())
        advantage = reward - centre
        if scale != "none":
            advantage /= statistics.stdev(members if scale == "group" else everyone) + eps
        out.append(advantage)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("baseline", ["mean", "rloo", "opo"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_formula(scale: str, baseline: str, dtype: torch.dtype) -> None:
    ids = torch.randint(-3, 4, (40,)) * 1_000_000_007
    rewards = torch.randn(40, dtype=dtype)
    lengths = torch.randint(1, 100, (40,))
    given = lengths if baseline == "opo" else None
    got = r1kernels.group_advantage(
        rewards, ids, scale=scale, baseline=baseline, eps=1e-3, lengths=given
    )
    assert got.dtype == dtype
    torch.testing.assert_close(got, naive(rewards, ids, lengths, scale, baseline, 1e-3).to(dtype))


def test_does_not_depend_on_the_order_of_the_batch_or_the_numbers_of_the_groups() -> None:
    rewards, ids = torch.rand(60), torch.randint(9, (60,))
    shuffle = torch.randperm(60)
    one = r1kernels.group_advantage(rewards, ids)
    two = r1kernels.group_advantage(rewards[shuffle], (17 - 5 * ids[shuffle]).int())
    assert torch.equal(one[shuffle], two)


def test_equal_rewards_of_different_lengths_do_not_depend_on_the_order_either() -> None:
    rewards, ids = torch.tensor([0.1, 0.3, 1 / 3])[torch.randint(3, (400,))], torch.zeros(400).int()
    lengths, shuffle = torch.rand(400), torch.randperm(400)
    one = r1kernels.group_advantage(rewards, ids, baseline="opo", lengths=lengths)
    two = r1kernels.group_advantage(rewards[shuffle], ids, baseline="opo", lengths=lengths[shuffle])
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
        ({"baseline": "opo"}, r"lengths: expected a tensor of shape \[B\] for baseline 'opo'"),
        ({"lengths": torch.ones(2)}, "lengths: expected None for baseline 'mean', got a tensor"),
        ({"scale": "std"}, "scale: expected one of group, batch, none; got 'std'"),
        ({"baseline": "max"}, "baseline: expected one of mean, rloo, opo; got 'max'"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    arguments = {"rewards": torch.ones(2), "group_ids": torch.zeros(2).long(), **change}
    with pytest.raises((ValueError, TypeError), match=f"group_advantage: {message}"):
        r1kernels.group_advantage(**arguments)


def test_gdpo_normalises_each_reward_before_it_adds_them_up() -> None:
    rewards, ids = torch.rand(24, 3, dtype=torch.float64), torch.arange(24) % 6
    rewards[:, 1] *= 1000  # would drown the others
    weights = [1.0, 0.5, 2.0]
    grouped = torch.stack([rewards[ids == group] for group in range(6)])
    each = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    total = torch.empty(24, dtype=torch.float64)
    for group in range(6):
        total[ids == group] = each[group] @ torch.tensor(weights, dtype=torch.float64)
    expected = (total - total.mean()) / (total.std() + 1e-4)
    got = r1kernels.gdpo_advantage(rewards, ids, reward_weights=weights)
    torch.testing.assert_close(got, expected)


def test_gdpo_names_bad_input() -> None:
    with pytest.raises(ValueError, match="reward_weights: expected R = 2 numbers, got 3"):
        r1kernels.gdpo_advantage(torch.ones(4, 2), torch.zeros(4).int(), reward_weights=[1, 2, 3])
    with pytest.raises(ValueError, match=r"rewards: expected shape \[B, R\], got \[4\]"):
        r1kernels.gdpo_advantage(torch.ones(4), torch.zeros(4).int())
