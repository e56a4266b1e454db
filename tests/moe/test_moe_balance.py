from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import r1kernels

SCORES = ("sigmoid", "softmax", "sqrtsoftplus")


def score_of(z: Tensor, score: str) -> Tensor:
    if score == "softmax":
        return z.softmax(0)
    return z.sigmoid() if score == "sigmoid" else torch.log1p(z.exp()).sqrt()


def naive(logits: Tensor, top_k: int, score: str, sequences: list[list[int]]) -> Tensor:
    """Equations 17–20 of arXiv 2412.19437, word for word; ``sequences``: their tokens."""
    experts = logits.shape[1]
    losses = []
    for tokens in filter(None, sequences):
        s = torch.stack([score_of(logits[t], score) for t in tokens])
        loss = torch.zeros((), dtype=logits.dtype)
        for i in range(experts):
            chosen = [
                i in s[t].sort(descending=True, stable=True).indices[:top_k] for t in range(len(s))
            ]
            f = experts / (top_k * len(s)) * sum(chosen)
            p = sum(s[t, i] / s[t].sum() for t in range(len(s))) / len(s)
            loss = loss + f * p
        losses.append(loss)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_formula_and_gradient(score: str, packed: bool, masked: bool) -> None:
    logits = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    ends = [0, 7, 7, 8, 20] if packed else [0, 20]
    mask = torch.rand(20) < 0.6 if masked else torch.ones(20, dtype=torch.bool)
    if masked and packed:
        mask[7] = False  # nothing of the third sequence is left
    sequences = [[t for t in range(a, b) if mask[t]] for a, b in pairwise(ends)]
    expected = 0.25 * naive(logits, 2, score, sequences)
    got = r1kernels.moe_balance_loss(
        logits, 2, score=score, coef=0.25,
        cu_seqlens=torch.tensor(ends) if packed else None, mask=mask if masked else None,
    )  # fmt: skip
    torch.testing.assert_close(got, expected)
    (ours,), (theirs,) = (torch.autograd.grad(loss, logits) for loss in (got, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("score", SCORES)
def test_gradcheck(score: str) -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    cu_seqlens = torch.tensor([0, 4, 6], dtype=torch.int32)
    assert torch.autograd.gradcheck(
        lambda z: r1kernels.moe_balance_loss(z, 2, score=score, cu_seqlens=cu_seqlens), logits
    )


def test_an_even_load_costs_coef_and_the_worst_experts_over_k_times_that() -> None:
    even = 50.0 * torch.eye(8)
    assert float(r1kernels.moe_balance_loss(even, 1, score="softmax", coef=0.5)) == 0.5
    worst = 50.0 * torch.eye(8)[:1].expand(5, 8)
    assert float(r1kernels.moe_balance_loss(worst, 1, score="softmax", coef=0.5)) == 4.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_logits_give_a_float32_loss_and_a_gradient_of_their_own_type(
    dtype: torch.dtype,
) -> None:
    logits = torch.randn(40, 16).to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    got, expected = (r1kernels.moe_balance_loss(z, 4) for z in (logits, exact))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected.float())
    (ours,), (theirs,) = torch.autograd.grad(got, logits), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(ours, theirs.to(dtype))


def test_what_a_masked_token_holds_does_not_matter() -> None:
    logits = torch.randn(9, 6)
    logits[3] = torch.nan
    mask = torch.arange(9) != 3
    logits.requires_grad_()
    got = r1kernels.moe_balance_loss(logits, 2, mask=mask)
    assert torch.equal(got, r1kernels.moe_balance_loss(logits[mask], 2))
    (gradient,) = torch.autograd.grad(got, logits)
    assert not gradient[3].any()
    assert gradient[mask].isfinite().all()


@pytest.mark.parametrize("rows", [0, 5])
def test_no_tokens_cost_nothing(rows: int) -> None:
    logits = torch.randn(rows, 6, requires_grad=True)
    got = r1kernels.moe_balance_loss(logits, 2, mask=torch.zeros(rows, dtype=torch.bool))
    assert float(got.detach()) == 0
    assert not torch.autograd.grad(got, logits)[0].any()


def test_a_bias_moves_towards_the_mean_in_steps_of_the_rate() -> None:
    bias = torch.tensor([5.0, -1.0, 0.0, 2.0])
    counts = torch.tensor([4, 2, 3, 3], dtype=torch.int32)
    r1kernels.update_expert_bias(bias, counts, rate=0.5)
    assert bias.tolist() == [4.5, -0.5, 0.0, 2.0]
    assert counts.tolist() == [4, 2, 3, 3]


def test_a_count_beyond_float32_is_still_compared_exactly() -> None:
    bias = torch.zeros(3)
    r1kernels.update_expert_bias(bias, torch.tensor([2**30 + 1, 2**30, 2**30 - 1]), rate=1.0)
    assert bias.tolist() == [-1.0, 0.0, 1.0]


def test_a_parameter_is_moved_too() -> None:
    bias = torch.nn.Parameter(torch.zeros(2))
    r1kernels.update_expert_bias(bias, torch.tensor([0, 2]), rate=1.0)
    assert bias.tolist() == [1.0, -1.0]


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        bias = torch.zeros(3)
        counts = torch.tensor([[5, 0, 1], [0, 3, 3]][rank], dtype=torch.int32)
        r1kernels.update_expert_bias(bias, counts, rate=1.0, group=dist.group.WORLD)
        torch.save((bias, counts), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_counts_of_two_processes_are_added_up(tmp_path: Path) -> None:
    """Each alone would have moved its bias another way."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    for rank, expected in enumerate(([5, 0, 1], [0, 3, 3])):
        bias, counts = torch.load(tmp_path / f"{rank}.pt")
        assert bias.tolist() == [-1.0, 1.0, 0.0]
        assert counts.tolist() == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3)}, r"logits: expected shape \[T, E\], got \[3\]"),
        ({"top_k": 5}, "top_k: expected top_k ≤ E = 4, got 5"),
        ({"top_k": 0}, "top_k: expected a whole number, 1 or more, got 0"),
        ({"score": "relu"}, "score: expected one of sigmoid, softmax, sqrtsoftplus; got 'relu'"),
        ({"cu_seqlens": torch.tensor([0, 2])}, "cu_seqlens: .*end at T = 3, got 0 … 2"),
        ({"cu_seqlens": torch.tensor([]).long()}, "cu_seqlens: expected at least one element"),
        ({"mask": torch.ones(3)}, "mask: expected dtype bool, got float32"),
        ({"mask": torch.ones(2).bool()}, r"mask: expected T = 3 in shape \[T\], got \[2\]"),
    ],
)
def test_bad_input_of_the_loss_is_named(change: dict[str, object], message: str) -> None:
    arguments = {"logits": torch.zeros(3, 4), "top_k": 2, **change}
    with pytest.raises((ValueError, TypeError), match=f"moe_balance_loss: {message}"):
        r1kernels.moe_balance_loss(**arguments)


@pytest.mark.parametrize(
    ("bias", "counts", "message"),
    [
        (torch.zeros(4).bfloat16(), torch.zeros(4).int(),
         "bias: expected dtype float32, got bfloat16, in which a step of 0.001 vanishes"),
        (torch.zeros(4), torch.zeros(4), "counts: expected dtype int64 or int32, got float32"),
        (torch.zeros(4), torch.zeros(3).int(), r"counts: expected E = 4 in shape \[E\], got \[3\]"),
    ],
)  # fmt: skip
def test_bad_input_of_the_update_is_named(bias: Tensor, counts: Tensor, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"update_expert_bias: {message}"):
        r1kernels.update_expert_bias(bias, counts)
