"""The formulas, against one that writes L only and leaves the gradient to autograd."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.ops.losses import KL_ESTIMATORS, LEVELS, LOSSES

LENGTHS = (5, 0, 9, 1, 4)  # the fourth sequence is masked out
B, T = len(LENGTHS), sum(LENGTHS)


def make_inputs(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    logprob = -2 + draw(T)
    mask = torch.rand(T, generator=rng) < 0.7
    mask[14] = False
    return {
        "logprob": logprob,
        "advantages": draw(B),
        "cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        "old_logprob": logprob + 0.4 * draw(T),
        "ref_logprob": logprob + 0.4 * draw(T),
        "mask": mask,
        "entropy": draw(T).exp(),
        "epsilon_high": 0.28,
        "max_completion_length": 16,
    }


def naive(
    logprob: Tensor,
    advantages: Tensor,
    cu_seqlens: Tensor,
    mask: Tensor,
    ref_logprob: Tensor,
    entropy: Tensor,
    loss_type: str,
    max_completion_length: int,
    epsilon_high: float,
    old_logprob: Tensor | None = None,
    importance_sampling_level: str = "token",
    epsilon: float = 0.2,
    delta: float | None = None,
    beta: float = 0.0,
    kl_estimator: str = "k3",
    entropy_coef: float = 0.0,
) -> Tensor:
    per_sequence = []
    for b, (start, end) in enumerate(itertools.pairwise(cu_seqlens)):
        rows = torch.arange(int(start), int(end))[mask[start:end]]
        new = logprob[rows]
        old = new.detach() if old_logprob is None else old_logprob[rows]
        log_ratio = new - old
        if (importance_sampling_level == "sequence" or loss_type == "gspo") and len(rows):
            log_ratio = log_ratio.mean().expand(len(rows))
        ratio = log_ratio.exp()
        advantage = advantages[rows] if len(advantages) == T else advantages[b]
        if loss_type == "reinforce":
            loss = -advantage * new
        elif loss_type == "cispo":
            loss = -ratio.clamp(max=epsilon_high).detach() * advantage * new
        else:
            clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
            bounded = ratio if delta is None else ratio.clamp(max=delta)
            loss = -torch.min(bounded * advantage, clipped * advantage)
        x = ref_logprob[rows] - new
        kl = {"k1": -x, "k2": x**2 / 2, "k3": x.exp() - x - 1}[kl_estimator]
        per_sequence.append(loss + beta * kl)
    n = int(mask.sum())
    total = torch.cat(per_sequence).sum()
    if loss_type in ("grpo", "gspo"):
        total = sum(s.sum() / max(len(s), 1) for s in per_sequence) / B
    elif loss_type == "dr_grpo":
        total = total / (B * max_completion_length)
    else:
        total = total / n
    return total - entropy_coef * entropy[mask].mean()


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of, allow_unused=True, materialize_grads=True)


EVERYTHING = {"beta": 0.1, "entropy_coef": 0.05, "delta": 1.4}


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("on_policy", [False, True], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("per_token", [False, True], ids=["advantage[B]", "advantage[T]"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_value_and_gradient(
    loss_type: str, level: str, per_token: bool, on_policy: bool, options: dict[str, float]
) -> None:
    inputs = make_inputs()
    if on_policy:
        del inputs["old_logprob"]
    if per_token:
        inputs["advantages"] = torch.randn(T, dtype=torch.float64)
    inputs |= {"loss_type": loss_type, "importance_sampling_level": level, **options}
    logprob, entropy = (inputs[key].requires_grad_() for key in ("logprob", "entropy"))
    got = r1kernels.policy_loss(**inputs).loss
    expected = naive(**inputs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        gradients(got, logprob, entropy), gradients(expected, logprob, entropy)
    )


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_gradcheck(loss_type: str, level: str, estimator: str) -> None:
    inputs = make_inputs(seed=3)
    inputs |= {"loss_type": loss_type, "importance_sampling_level": level, **EVERYTHING}
    inputs["kl_estimator"] = estimator
    if loss_type == "cispo":
        inputs["epsilon_high"] = 1e-3  # all capped: a stopped gradient is constant only there
    logprob, entropy = (inputs.pop(key).requires_grad_() for key in ("logprob", "entropy"))
    assert torch.autograd.gradcheck(
        lambda p, h: r1kernels.policy_loss(p, entropy=h, **inputs).loss, (logprob, entropy)
    )


def test_metrics() -> None:
    inputs = make_inputs()
    sampling = inputs["old_logprob"] + 0.1 * torch.randn(T, dtype=torch.float64)
    _, metrics = r1kernels.policy_loss(**inputs, sampling_logprob=sampling, beta=0.3)
    mask, advantage = inputs["mask"], inputs["advantages"].repeat_interleave(torch.tensor(LENGTHS))
    ratio = (inputs["logprob"] - inputs["old_logprob"]).exp()
    clipped = (ratio > 1.28) & (advantage > 0) | (ratio < 0.8) & (advantage < 0)
    x = inputs["ref_logprob"] - inputs["logprob"]
    drift = (inputs["old_logprob"] - sampling).abs()[mask]
    expected = {
        "policy_loss": r1kernels.policy_loss(**inputs).loss,
        "kl": (x.exp() - x - 1)[mask].mean(),
        "entropy": inputs["entropy"][mask].mean(),
        "clip_fraction": clipped[mask].double().mean(),
        "ratio_mean": ratio[mask].mean(),
        "ratio_max": ratio[mask].max(),
        "sampling_delta_mean": drift.mean(),
        "sampling_delta_max": drift.max(),
        "active_tokens": mask.double().sum(),
    }
    assert list(metrics) == list(expected)
    torch.testing.assert_close(metrics, expected)
    assert not any(metric.requires_grad for metric in metrics.values())


def test_metrics_without_their_inputs_are_absent() -> None:
    inputs = make_inputs()
    del inputs["ref_logprob"], inputs["entropy"]
    metrics = r1kernels.policy_loss(**inputs).metrics
    assert not {"kl", "entropy", "sampling_delta_mean", "sampling_delta_max"} & set(metrics)


@pytest.mark.parametrize("loss_type", [name for name in LOSSES if name != "bnpo"])
def test_normalisers_do_not_change_under_gradient_accumulation(loss_type: str) -> None:
    inputs = make_inputs()
    inputs |= {"loss_type": loss_type, "beta": 0.1, "entropy_coef": 0.05}
    logprob = inputs["logprob"].requires_grad_()
    whole = r1kernels.policy_loss(**inputs).loss
    inputs["num_active_tokens"] = inputs["mask"].sum()  # a 0-d tensor; a number does as well
    inputs["num_sequences"] = B
    parts = []
    for first, last in ((0, 1), (1, 4), (4, 5)):
        rows = slice(*inputs["cu_seqlens"][[first, last]].tolist())
        part = {
            key: value[rows] if isinstance(value, Tensor) and value.shape == (T,) else value
            for key, value in inputs.items()
        }
        part["advantages"] = inputs["advantages"][first:last]
        part["cu_seqlens"] = inputs["cu_seqlens"][first : last + 1] - rows.start
        parts.append(r1kernels.policy_loss(**part).loss)
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(gradients(sum(parts), logprob), gradients(whole, logprob))


def test_no_loss_type_is_silently_another() -> None:
    inputs = make_inputs() | {"mask": None}
    values = {
        name: r1kernels.policy_loss(**inputs, loss_type=name).loss.item()
        for name in LOSSES
        if name != "dapo"  # equals bnpo as long as there is no accumulation
    }
    assert len(set(values.values())) == len(values)


def test_as_many_advantages_as_sequences_and_rows_are_one_for_each_sequence() -> None:
    advantages = torch.tensor([5.0, -1.0])
    got = r1kernels.policy_loss(
        torch.zeros(2), advantages, cu_seqlens=torch.tensor([0, 0, 2]), loss_type="bnpo"
    )
    assert got.loss == 1.0  # both rows belong to the second sequence


def test_does_not_depend_on_the_number_of_threads() -> None:
    rows = 20_000
    logprob = -torch.rand(rows, requires_grad=True)
    old, ref = -torch.rand(2, rows)
    cu_seqlens = torch.cat([torch.tensor([0]), torch.randint(rows, (99,)).sort().values])
    cu_seqlens[-1] = rows
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        loss, metrics = r1kernels.policy_loss(
            logprob, torch.randn(99, generator=torch.Generator().manual_seed(0)),
            cu_seqlens=cu_seqlens, old_logprob=old, ref_logprob=ref, loss_type="gspo", beta=0.1,
        )  # fmt: skip
        results.append([loss, *gradients(loss, logprob), *metrics.values()])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_masked_rows_may_hold_anything(loss_type: str, level: str, value: float) -> None:
    inputs = make_inputs(torch.float32)
    inputs |= {"loss_type": loss_type, "importance_sampling_level": level, **EVERYTHING}
    inputs["advantages"] = torch.randn(T)
    inputs["sampling_logprob"] = inputs["old_logprob"].clone()
    before = inputs["logprob"].requires_grad_()
    clean = r1kernels.policy_loss(**inputs)
    floats = ("advantages", "old_logprob", "ref_logprob", "sampling_logprob", "entropy")
    for key in floats:
        inputs[key] = inputs[key].where(inputs["mask"], value)
    after = before.detach().where(inputs["mask"], value).requires_grad_()
    dirty = r1kernels.policy_loss(**(inputs | {"logprob": after}))
    torch.testing.assert_close(dirty, clean)
    (got,) = gradients(dirty.loss, after)
    torch.testing.assert_close((got,), gradients(clean.loss, before))
    assert (got[~inputs["mask"]] == 0).all()


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_no_overflow_when_the_policies_are_far_apart(
    loss_type: str, estimator: str, shift: float
) -> None:
    inputs = make_inputs(torch.float32)
    inputs["old_logprob"] = inputs["logprob"] + shift
    inputs["ref_logprob"] = inputs["logprob"] - shift
    inputs["logprob"].requires_grad_()
    loss, metrics = r1kernels.policy_loss(
        **inputs, loss_type=loss_type, kl_estimator=estimator, beta=0.1
    )
    assert loss.isfinite()
    assert all(metric.isfinite() for metric in metrics.values())
    assert gradients(loss, inputs["logprob"])[0].isfinite().all()


@pytest.mark.parametrize("loss_type", LOSSES)
def test_nothing_active_is_a_zero_loss(loss_type: str) -> None:
    inputs = make_inputs() | {"mask": torch.zeros(T, dtype=torch.bool), "loss_type": loss_type}
    inputs |= {"num_active_tokens": 0, **EVERYTHING}
    inputs["logprob"].requires_grad_()
    loss, metrics = r1kernels.policy_loss(**inputs)
    assert loss == 0
    assert all(metric == 0 for metric in metrics.values())
    assert (gradients(loss, inputs["logprob"])[0] == 0).all()


def test_fp64_numbers_compile() -> None:
    torch.compiler.reset()
    inputs = make_inputs(torch.float32) | {"loss_type": "dapo", "beta": 0.1}
    compiled = torch.compile(r1kernels.policy_loss, fullgraph=True, dynamic=True)
    for tokens in (7.5, torch.tensor(9.0, dtype=torch.float64), torch.tensor(11)):
        expected = r1kernels.policy_loss(**inputs, num_active_tokens=tokens)
        got = compiled(**inputs, num_active_tokens=tokens)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"loss_type": "ppo"},
            "loss_type: expected one of grpo, bnpo, dr_grpo, dapo, gspo, cispo, .*; got 'ppo'",
        ),
        (
            {"importance_sampling_level": "word"},
            "importance_sampling_level: expected one of token, sequence; got 'word'",
        ),
        ({"kl_estimator": "k4"}, "kl_estimator: expected one of k1, k2, k3; got 'k4'"),
        ({"logprob": torch.zeros(T, 1)}, r"logprob: expected shape \[T\], got"),
        ({"logprob": torch.zeros(T).half()}, "logprob: expected dtype float32 or float64"),
        ({"advantages": torch.zeros(3)}, r"advantages: expected B = 5 .*, got \[3\]"),
        (
            {"advantages": torch.zeros(B).double()},
            "advantages: expected dtype float32, got float64",
        ),
        ({"old_logprob": torch.zeros(T - 1)}, f"old_logprob: expected T = {T}"),
        ({"mask": torch.ones(T)}, "mask: expected dtype bool, got float32"),
        ({"mask": torch.ones(T, device="meta").bool()}, "mask: expected a tensor on cpu"),
        (
            {"cu_seqlens": torch.tensor([0, 5, 5, 14, 15, 18])},
            f"cu_seqlens: expected to start at 0 and end at T = {T}, got 0 … 18",
        ),
        (
            {"cu_seqlens": torch.tensor([1, 5, 5, 14, 15, 19])},
            f"cu_seqlens: expected to start at 0 and end at T = {T}, got 1 … 19",
        ),
        (
            {"cu_seqlens": torch.tensor([0, 5, 4, 14, 15, 19])},
            "cu_seqlens: expected non-decreasing offsets",
        ),
        (
            {"cu_seqlens": torch.zeros(0).int()},
            "cu_seqlens: expected at least one element, 0; got none",
        ),
        (
            {"beta": 0.1, "ref_logprob": None},
            "ref_logprob: expected a tensor, since beta = 0.1; got None",
        ),
        (
            {"entropy_coef": 0.1, "entropy": None},
            "entropy: expected a tensor, since entropy_coef = 0.1; got None",
        ),
        (
            {"loss_type": "dr_grpo", "max_completion_length": None},
            "max_completion_length: expected a number for 'dr_grpo', got None",
        ),
        (
            {"loss_type": "cispo", "epsilon_high": None},
            "epsilon_high: expected the cap of the ratio for 'cispo'",
        ),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"policy_loss: {message}"):
        r1kernels.policy_loss(**(make_inputs(torch.float32) | change))
