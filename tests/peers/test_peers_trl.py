"""The same numbers as TRL's own loss, whose arithmetic runs here on a stand-in for its trainer.

Where they differ, and why ours stays as it is:

- TRL lets log ratios overflow; ours are bounded to ±20. Here they are small.
- TRL's luspo broadcasts a sequence's loss to its tokens, as ours does at the level of the sequence.
- TRL has no name for sums over another normaliser: "dapo", "cispo" and "vespo" take it as
  ``num_items_in_batch``, ours as ``num_active_tokens``.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels

LENGTHS = (5, 9, 1, 4)
B, LONGEST, T = len(LENGTHS), max(LENGTHS), sum(LENGTHS)
REAL = torch.tensor(LENGTHS)[:, None] > torch.arange(LONGEST)  # [B, LONGEST], as rows are packed
LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "gspo", "cispo", "sapo", "vespo"]
CLIPPED = ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "gspo"]
OWN_RATIO = ["vespo", "gspo"]  # no choice between token and sequence
CORRECTIONS = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@pytest.fixture(scope="module")
def trl() -> Any:
    return pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer


class Step:
    """A batch of completions, as both sides take it."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)

        def draw() -> Tensor:
            return torch.randn(B, LONGEST, generator=rng, dtype=torch.float64)

        self.logprob = (-2 + draw()).requires_grad_()
        self.entropy = draw().abs().requires_grad_()
        self.old = self.logprob.detach() + 0.4 * draw()
        self.ref = self.logprob.detach() + draw()
        self.sampling = self.old + 0.4 * draw()
        self.advantages = torch.randn(B, generator=rng, dtype=torch.float64)
        self.mask = REAL & (torch.rand(B, LONGEST, generator=rng) < 0.8)

    def ours(self, options: dict[str, Any]) -> Tensor:
        return r1kernels.policy_loss(
            self.logprob[REAL],
            self.advantages,
            cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0),
            old_logprob=self.old[REAL],
            ref_logprob=self.ref[REAL],
            sampling_logprob=self.sampling[REAL],
            mask=self.mask[REAL],
            entropy=self.entropy[REAL],
            **options,
        ).loss

    def theirs(self, trl: Any, settings: dict[str, Any], weights: Tensor | None = None) -> Tensor:
        arguments = {"delta": None, "use_bias_correction_kl": False, "sapo_temperature_pos": 1.0,
                     "sapo_temperature_neg": 1.05, "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0,
                     "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0}  # fmt: skip
        attributes: dict[str, Any] = {"epsilon_low": 0.2, "epsilon_high": 0.28, "beta": 0.0,
                                      "entropy_coef": 0.0, "max_completion_length": 16,
                                      "off_policy_mask_threshold": None}  # fmt: skip
        attributes |= {key: value for key, value in settings.items() if key not in arguments}
        arguments |= {key: value for key, value in settings.items() if key in arguments}
        one_process = SimpleNamespace(
            num_processes=1,
            gather=lambda x: x,
            reduce=lambda x, reduction: x,
            sync_gradients=True,
        )
        stand_in = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *_, **__: (self.logprob, self.entropy, None),
            accelerator=one_process,
            args=SimpleNamespace(**arguments),
            model=SimpleNamespace(training=False),
            _metrics={"eval": defaultdict(list)},
            _entropy_bonus_enabled=attributes["entropy_coef"] != 0,
            aux_loss_enabled=False,
            top_entropy_quantile=1.0,
            use_adaptive_entropy=False,
            use_vllm=weights is not None,
            vllm_importance_sampling_correction=weights is not None,
            get_off_policy_mask=trl.get_off_policy_mask,
            get_gamma_weights=trl.get_gamma_weights,
            **attributes,
        )
        inputs = {
            "prompt_ids": torch.zeros(B, 1).long(),
            "prompt_mask": torch.ones(B, 1).long(),
            "completion_ids": torch.zeros(B, LONGEST).long(),
            "completion_mask": self.mask.long(),
            "advantages": self.advantages,
            "old_per_token_logps": self.old,
            "ref_per_token_logps": self.ref,
            "sampling_per_token_logps": self.sampling,
            "num_items_in_batch": self.mask.sum(),
        }
        if weights is not None:
            inputs["importance_sampling_ratio"] = weights
        return trl._compute_loss(stand_in, None, inputs)

    def agree(self, ours: Tensor, theirs: Tensor) -> None:
        torch.testing.assert_close(ours, theirs)
        leaves = (self.logprob, self.entropy)
        got, expected = (
            torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            for loss in (ours, theirs)
        )
        assert got[0].count_nonzero() > 3
        torch.testing.assert_close(got, expected)


def spelled(loss_type: str, level: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(our options, TRL's settings) of a loss without anything else."""
    ours: dict[str, Any] = {"loss_type": loss_type}
    theirs: dict[str, Any] = {"loss_type": loss_type, "importance_sampling_level": level}
    if loss_type == "gspo":  # TRL's way to say it
        theirs |= {"loss_type": "grpo", "importance_sampling_level": "sequence"}
    if loss_type not in OWN_RATIO:
        ours["importance_sampling_level"] = level
    if loss_type in CLIPPED:
        ours["epsilon_high"] = 0.28
    if loss_type == "cispo":
        ours["epsilon_high"] = theirs["epsilon_high"] = 1.1
    if loss_type == "dr_grpo":
        ours["max_completion_length"] = 16
    return ours, theirs


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_gradient(trl: Any, loss_type: str, level: str) -> None:
    step = Step()
    ours, theirs = spelled(loss_type, level)
    more = {"beta": 0.04, "entropy_coef": 0.01}
    delta = {"delta": 1.5} if loss_type in CLIPPED else {}
    step.agree(step.ours(ours | more | delta), step.theirs(trl, theirs | more | delta))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_bias_corrected_kl(trl: Any, loss_type: str, level: str) -> None:
    step = Step()
    ours, theirs = spelled(loss_type, level)
    more = {"beta": 0.3, "use_bias_correction_kl": True}
    step.agree(step.ours(ours | more), step.theirs(trl, theirs | more))


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "sapo"])
def test_off_policy_sequence_mask(trl: Any, loss_type: str) -> None:
    step = Step()
    step.advantages = torch.tensor([-1.0, -0.5, 0.7, -2.0], dtype=torch.float64)
    with torch.no_grad():
        distance = ((step.sampling - step.logprob) * step.mask).sum(1) / step.mask.sum(1)
    threshold = float(distance[[0, 1, 3]].median())  # drops one of the three
    ours, theirs = spelled(loss_type, "token")
    more = {"off_policy_mask_threshold": threshold, "beta": 0.04}
    step.agree(step.ours(ours | more), step.theirs(trl, theirs | more))


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "cispo", "vespo"])
def test_rollout_correction(trl: Any, loss_type: str, correction: str) -> None:
    step = Step()
    of, _, how = correction.partition("_")
    difference = ((step.old - step.sampling) * step.mask).nan_to_num()
    if of == "sequence":
        difference = difference.sum(1, keepdim=True)
    weights = difference.exp()
    low, high = (0.8, 1.3)
    if of == "sequence":  # the lowest of them is outside
        low, high = float(weights.flatten().sort().values[:2].mean()), 1e3
    within = weights.clamp(low, high)
    cut = within if how == "truncate" else weights.where(within == weights, 0.0)
    ours, theirs = spelled(loss_type, "token")
    more = {"rollout_correction": correction, "rollout_clip_min": low, "rollout_clip_max": high}
    if loss_type == "vespo" and of == "sequence":
        with pytest.raises(ValueError, match="rollout_correction"):
            step.ours(ours | more)
        return
    step.agree(step.ours(ours | more), step.theirs(trl, theirs, cut))
