"""The same numbers as TRL's own loss, whose arithmetic runs here on a stand-in for its trainer."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import r1kernels
from r1kernels.ops.losses import LEVELS

LENGTHS = (5, 9, 1, 4)
B, LONGEST, T = len(LENGTHS), max(LENGTHS), sum(LENGTHS)
COLUMN = torch.arange(LONGEST)
REAL = torch.tensor(LENGTHS)[:, None] > COLUMN  # [B, LONGEST], in the order of packed rows


def trl_loss(
    logprob: torch.Tensor, entropy: torch.Tensor, inputs: dict[str, Any], options: dict[str, Any]
) -> torch.Tensor:
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    accelerator = SimpleNamespace(
        num_processes=1,
        gather=lambda x: x,
        reduce=lambda x, reduction: x,
        sync_gradients=True,
    )
    stand_in = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprob, entropy, None),
        accelerator=accelerator,
        args=SimpleNamespace(delta=options["delta"], use_bias_correction_kl=False),
        model=SimpleNamespace(training=False),
        _metrics={"eval": defaultdict(list)},
        _entropy_bonus_enabled=options["entropy_coef"] != 0,
        aux_loss_enabled=False,
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_adaptive_entropy=False,
        use_vllm=False,
        **{key: value for key, value in options.items() if key != "delta"},
    )
    return trainer._compute_loss(stand_in, None, inputs)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "gspo"])
def test_loss_and_gradient(loss_type: str, level: str) -> None:
    padded = [torch.randn(B, LONGEST) for _ in range(3)]
    logprob, old, ref = -2 + padded[0], -2 + padded[0] + 0.4 * padded[1], -2 + padded[2]
    entropy, advantages = torch.rand(B, LONGEST), torch.randn(B)
    mask = REAL & (torch.rand(B, LONGEST) < 0.8)
    logprob.requires_grad_(), entropy.requires_grad_()
    options = {
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "epsilon_high": 1.1 if loss_type == "cispo" else 0.28,
        "delta": 1.5,
        "beta": 0.04,
        "entropy_coef": 0.01,
        "max_completion_length": 16,
    }
    ours = r1kernels.policy_loss(
        logprob[REAL],
        advantages,
        cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0),
        old_logprob=old[REAL],
        ref_logprob=ref[REAL],
        mask=mask[REAL],
        entropy=entropy[REAL],
        **options,
    ).loss
    inputs = {
        "prompt_ids": torch.zeros(B, 1).long(),
        "prompt_mask": torch.ones(B, 1).long(),
        "completion_ids": torch.zeros(B, LONGEST).long(),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": mask.sum(),
    }
    # TRL spells GSPO as loss_type "grpo" at the level of the sequence.
    spelled = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
    options |= {"epsilon_low": 0.2} | (spelled if loss_type == "gspo" else {})
    theirs = trl_loss(logprob, entropy, inputs, options)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (logprob, entropy)),
        torch.autograd.grad(theirs, (logprob, entropy)),
    )
