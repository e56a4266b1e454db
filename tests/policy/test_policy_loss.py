"""What every loss promises; the formulas are in ``test_policy_loss_formulas.py``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.policy.losses import KL_ESTIMATORS, LEVELS, LOSSES

LENGTHS = (5, 0, 9, 1, 4)  # the fourth sequence is masked out
B, T = len(LENGTHS), sum(LENGTHS)


NEEDED = {
    "cispo": {"epsilon_high": 1.1},
    "clip_cov": {"clip_cov_lb": 0.0},
    "dppo_kl": {"epsilon": 0.01},  # by default it cuts nothing here that dppo_tv does not
    "dr_grpo": {"max_completion_length": 16},
}
FORMS = [
    (name, level)
    for name, loss in LOSSES.items()
    for level in [level for level in loss.levels if level in LEVELS] or [None]
]


def make_inputs(loss_type: str = "grpo", dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(0)

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
        "loss_type": loss_type,
        **NEEDED.get(loss_type, {}),
    }


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of, allow_unused=True, materialize_grads=True)


EVERYTHING = {
    "beta": 0.1, "entropy_coef": 0.05, "rollout_correction": "token_truncate",
    "off_policy_mask_threshold": 0.1,
}  # fmt: skip


def test_metrics() -> None:
    inputs = make_inputs()
    sampling = inputs["old_logprob"] + 0.1 * torch.randn(T, dtype=torch.float64)
    sampling[0] = torch.nan  # the sampler did not say: taken for the old policy
    correction = {"rollout_correction": "token_truncate", "off_policy_mask_threshold": 0.1}
    inputs["sampling_logprob"] = sampling
    _, metrics = r1kernels.policy_loss(**inputs, **correction, beta=0.3)
    mask, advantage = inputs["mask"], inputs["advantages"].repeat_interleave(torch.tensor(LENGTHS))
    ratio = (inputs["logprob"] - inputs["old_logprob"]).exp()
    clipped = (ratio > 1.2) & (advantage > 0) | (ratio < 0.8) & (advantage < 0)
    x = inputs["ref_logprob"] - inputs["logprob"]
    drift = (inputs["old_logprob"] - sampling).nan_to_num(0.0)
    away = (sampling - inputs["logprob"]).nan_to_num(0.0)
    far = torch.stack([a[m].mean() > 0.1 for a, m in zip(*(
        v.split(LENGTHS) for v in (away, mask)
    ), strict=True)])  # fmt: skip
    dropped = far.repeat_interleave(torch.tensor(LENGTHS)) & (advantage < 0)
    assert dropped[mask].any()
    expected = {
        "policy_loss": r1kernels.policy_loss(**inputs, **correction).loss,
        "kl": (x.exp() - x - 1)[mask].mean(),
        "entropy": inputs["entropy"][mask].mean(),
        "clip_fraction": clipped[mask].double().mean(),
        "ratio_mean": ratio[mask].mean(),
        "ratio_max": ratio[mask].max(),
        "sampling_delta_mean": drift[mask].abs().mean(),
        "sampling_delta_max": drift[mask].abs().max(),
        "rollout_weight_mean": drift[mask].exp().clamp(max=3.0).mean(),
        "off_policy_fraction": dropped[mask].double().mean(),
        "active_tokens": mask.double().sum(),
    }
    assert list(metrics) == list(expected)
    torch.testing.assert_close(metrics, expected)
    assert not any(metric.requires_grad for metric in metrics.values())


def test_metrics_without_their_inputs_are_absent() -> None:
    inputs = make_inputs()
    del inputs["ref_logprob"], inputs["entropy"]
    metrics = r1kernels.policy_loss(**inputs).metrics
    assert list(metrics) == [
        "policy_loss", "clip_fraction", "ratio_mean", "ratio_max", "active_tokens",
    ]  # fmt: skip


@pytest.mark.parametrize("loss_type", sorted(set(LOSSES) - {"bnpo", "clip_cov", "kl_cov"}))
def test_normalisers_do_not_change_under_gradient_accumulation(loss_type: str) -> None:
    inputs = make_inputs(loss_type) | EVERYTHING
    inputs["sampling_logprob"] = inputs["old_logprob"] + 0.1
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
    values = {
        name: r1kernels.policy_loss(**(make_inputs(name) | {"mask": None})).loss.item()
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
@pytest.mark.parametrize(("loss_type", "level"), FORMS)
def test_masked_rows_may_hold_anything(loss_type: str, level: str | None, value: float) -> None:
    inputs = make_inputs(loss_type, torch.float32)
    inputs |= {"importance_sampling_level": level, **EVERYTHING}
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
    inputs = make_inputs(loss_type, torch.float32)
    inputs["old_logprob"] = inputs["logprob"] + shift
    inputs["ref_logprob"] = inputs["logprob"] - shift
    inputs["sampling_logprob"] = inputs["logprob"] + 2 * shift
    inputs["logprob"].requires_grad_()
    loss, metrics = r1kernels.policy_loss(**inputs, **EVERYTHING, kl_estimator=estimator)
    assert loss.isfinite()
    assert all(metric.isfinite() for metric in metrics.values())
    assert gradients(loss, inputs["logprob"])[0].isfinite().all()


@pytest.mark.parametrize("loss_type", LOSSES)
def test_nothing_active_is_a_zero_loss(loss_type: str) -> None:
    inputs = make_inputs(loss_type) | {"mask": torch.zeros(T, dtype=torch.bool)}
    inputs |= {"num_active_tokens": 0, "sampling_logprob": inputs["old_logprob"], **EVERYTHING}
    inputs["logprob"].requires_grad_()
    loss, metrics = r1kernels.policy_loss(**inputs)
    assert loss == 0
    assert all(metric == 0 for metric in metrics.values())
    assert (gradients(loss, inputs["logprob"])[0] == 0).all()


def test_fp64_numbers_compile() -> None:
    torch.compiler.reset()
    inputs = make_inputs("dapo", torch.float32) | {"epsilon_high": 0.28, "delta": 1.5} | EVERYTHING
    inputs["sampling_logprob"] = inputs["old_logprob"] + 0.1
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
            "loss_type: expected one of grpo, bnpo, dr_grpo, dapo, gspo, luspo, .*; got 'ppo'",
        ),
        (
            {"importance_sampling_level": "word"},
            "importance_sampling_level: expected one of token, sequence, .*; got 'word'",
        ),
        (
            {"kl_estimator": "k4"},
            "kl_estimator: expected one of k1, abs, k2, k3, low_var, k3.; got 'k4'",
        ),
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
            "ref_logprob: expected a tensor, since beta is not 0; got None",
        ),
        (
            {"entropy_coef": 0.1, "entropy": None},
            "entropy: expected a tensor, since entropy_coef is not 0; got None",
        ),
        (
            {"loss_type": "dr_grpo", "max_completion_length": None},
            "max_completion_length: expected a number for 'dr_grpo', got None",
        ),
        ({"loss_type": "reinforce", "delta": 2.0}, "delta: 'reinforce' has no such option, .*2.0"),
        ({"loss_type": "sapo", "epsilon": 0.2}, r"epsilon: 'sapo' .* \(sapo_temperature_pos, .*"),
        (
            {"loss_type": "cispo_clip", "clip_ratio_c": 3.0},
            "clip_ratio_c: 'cispo_clip' has no such",
        ),
        ({"clip_ratio_c": 1.0}, "clip_ratio_c: expected a number above 1, got 1.0"),
        ({"epsilon": -0.1}, "epsilon: expected a number above 0, got -0.1"),
        (
            {"loss_type": "gspo", "importance_sampling_level": "token"},
            "importance_sampling_level: .* one of sequence, sequence_token; got 'token'",
        ),
        (
            {"loss_type": "vespo", "importance_sampling_level": "sequence"},
            "importance_sampling_level: 'vespo' has its own ratio, expected None; got 'sequence'",
        ),
        (
            {"rollout_correction": "token_mask"},
            "sampling_logprob: expected a tensor, since rollout_corr",
        ),
        ({"rollout_clip_max": 2.0}, "rollout_clip_max: expected None without rollout_correction"),
        (
            {"rollout_correction": "token", "sampling_logprob": torch.zeros(T)},
            "rollout_correction: expected one of token_truncate, .*; got 'token'",
        ),
        (
            {
                "rollout_correction": "token_mask",
                "sampling_logprob": torch.zeros(T),
                "rollout_clip_min": 3.0,
            },
            "rollout_clip_min: expected 0 ≤ rollout_clip_min < rollout_clip_max, got 3.0 and 3.0",
        ),
        (
            {"off_policy_mask_threshold": 0.1, "old_logprob": None},
            "sampling_logprob: expected a tensor, since off_policy_mask_threshold is given",
        ),
        (
            {"use_bias_correction_kl": True, "ref_logprob": None},
            "use_bias_correction_kl: expected False .* there is no ref_logprob; got True",
        ),
        ({"advantages": None}, "advantages: expected either .* rewards and group_ids; got neither"),
        ({"baseline": "rloo"}, "scale_rewards, baseline: expected only with rewards"),
        (
            {"advantages": None, "rewards": torch.zeros(B)},
            "group_ids: expected a tensor, since rewards are given; got None",
        ),
        (
            {"loss_type": "cispo", "epsilon_high": None},
            "epsilon_high: expected a number for 'cispo', got None",
        ),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"policy_loss: {message}"):
        r1kernels.policy_loss(**(make_inputs(dtype=torch.float32) | change))


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilom'"):
        r1kernels.policy_loss(**make_inputs(), epsilom=0.2)


@pytest.mark.parametrize("loss_type", ["grpo", "kl_cov"])
@pytest.mark.parametrize("baseline", ["mean", "rloo", "opo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rewards_become_advantages(loss_type: str, baseline: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(loss_type, dtype)
    given = {"rewards": torch.rand(B, dtype=dtype), "group_ids": torch.tensor([3, 3, 1, 3, 1])}
    lengths = torch.stack([m.sum() for m in inputs["mask"].split(LENGTHS)])
    inputs["advantages"] = r1kernels.group_advantage(
        **given, scale="batch", baseline=baseline, lengths=lengths if baseline == "opo" else None
    )
    expected = r1kernels.policy_loss(**inputs)
    inputs |= {"advantages": None, "scale_rewards": "batch", "baseline": baseline} | given
    torch.testing.assert_close(r1kernels.policy_loss(**inputs), expected)
