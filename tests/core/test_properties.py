"""What must not matter: packing, splitting and grouping, and what all logits of a row share."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import r1kernels
from r1kernels.policy.losses import LOSSES

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**31)
EVERY_LOSS = pytest.mark.parametrize("loss_type", LOSSES)
COVARIANCE = {"clip_cov", "kl_cov"}  # choose tokens by statistics of the call: local by definition
LOCAL = COVARIANCE | {"bnpo"}
few = settings(max_examples=10, deadline=None, derandomize=True, database=None)


class Batch:
    """Packed sequences with everything a loss can be given, and the totals of the whole step."""

    def __init__(self, lengths: list[int], seed: int, loss_type: str) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.lengths, rows = lengths, sum(lengths)

        def draw(scale: float = 0.3) -> Tensor:
            return scale * torch.randn(rows, generator=rng, dtype=torch.float64)

        logprob = -2 + draw()
        self.rows = {
            "logprob": logprob,
            "old_logprob": logprob + draw(),
            "ref_logprob": logprob + draw(),
            "sampling_logprob": logprob + draw(),
            "entropy": draw(1.0).abs(),
            "mask": torch.rand(rows, generator=rng) < 0.8,
        }
        self.advantages = torch.randn(len(lengths), generator=rng, dtype=torch.float64)
        self.options: dict[str, Any] = {
            "loss_type": loss_type,
            "beta": 0.05,
            "entropy_coef": 0.02,
            "max_completion_length": 8,
            "num_active_tokens": float(self.rows["mask"].sum().clamp(min=1)),
            "num_sequences": len(lengths),
        }
        if "epsilon_high" in LOSSES[loss_type].options:
            self.options["epsilon_high"] = 0.28

    def loss(self, order: list[int], **changes: Any) -> tuple[Tensor, Tensor]:
        """(loss, gradient of logprob in the batch's own order) of the sequences in ``order``."""
        parts = torch.arange(sum(self.lengths)).split(self.lengths)
        index = torch.cat([parts[b] for b in order])
        leaf = self.rows["logprob"].clone().requires_grad_()
        rows = {name: values[index] for name, values in (self.rows | {"logprob": leaf}).items()}
        loss = r1kernels.policy_loss(
            advantages=self.advantages[order],
            cu_seqlens=torch.tensor([0, *(self.lengths[b] for b in order)]).cumsum(0),
            **(rows | self.options | changes),
        ).loss
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@EVERY_LOSS
@few
@given(lengths=LENGTHS, seed=SEEDS, data=st.data())
def test_order_of_packing(loss_type: str, lengths: list[int], seed: int, data: Any) -> None:
    batch = Batch(lengths, seed, loss_type)
    order = data.draw(st.permutations(range(len(lengths))))
    if loss_type in COVARIANCE:  # ties of the random choice are broken by position
        order = list(range(len(lengths)))
    expected, got = batch.loss(list(range(len(lengths)))), batch.loss(list(order))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss_type", [name for name in LOSSES if name not in LOCAL])
@few
@given(lengths=LENGTHS, seed=SEEDS, data=st.data())
def test_splitting_into_micro_batches(
    loss_type: str, lengths: list[int], seed: int, data: Any
) -> None:
    batch = Batch(lengths, seed, loss_type)
    whole = list(range(len(lengths)))
    cut = data.draw(st.integers(0, len(lengths)))
    parts = [batch.loss(part) for part in (whole[:cut], whole[cut:]) if part]
    total = tuple(sum(values) for values in zip(*parts, strict=True))
    torch.testing.assert_close(total, batch.loss(whole), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@few
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    seed=SEEDS,
    data=st.data(),
)
def test_order_and_names_of_groups(scale: str, sizes: list[int], seed: int, data: Any) -> None:
    rng = torch.Generator().manual_seed(seed)
    rewards = torch.rand(sum(sizes), generator=rng).mul(4).round()
    ids = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    order = torch.tensor(data.draw(st.permutations(range(len(rewards)))))
    names = torch.tensor(data.draw(st.permutations(range(len(sizes))))) * 7 - 3
    expected = r1kernels.group_advantage(rewards, ids, scale=scale)
    got = r1kernels.group_advantage(rewards[order], names[ids[order]], scale=scale)
    assert torch.equal(got, expected[order])


@EVERY_LOSS
@few
@given(lengths=LENGTHS, seed=SEEDS)
def test_no_advantage_no_gradient(loss_type: str, lengths: list[int], seed: int) -> None:
    batch = Batch(lengths, seed, loss_type)
    batch.advantages.zero_()
    _, gradient = batch.loss(list(range(len(lengths))), beta=0.0, entropy_coef=0.0)
    if loss_type != "kl_cov":  # its penalty does not depend on the advantage
        assert not gradient.any()


@few
@given(
    seed=SEEDS,
    constant=st.sampled_from([-1000.0, -3.0, 0.25, 64.0]),
    options=st.sampled_from([{}, {"temperature": 0.5}, {"logit_scale": 2.0}]),
)
def test_adding_a_constant_to_the_logits(seed: int, constant: float, options: Any) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 37, generator=rng, dtype=torch.float64)
    target = torch.randint(37, (5,), generator=rng)

    def figures(values: Tensor) -> list[Tensor]:
        leaf = values.clone().requires_grad_()
        result = r1kernels.logprob(leaf, target, entropy=True, **options)
        assert result.entropy is not None
        total = result.logprob.sum() + result.entropy.sum()
        return [*result, *torch.autograd.grad(total, leaf)]

    # The logits themselves are rounded at the size of the constant.
    torch.testing.assert_close(figures(logits + constant), figures(logits), rtol=0, atol=1e-9)
