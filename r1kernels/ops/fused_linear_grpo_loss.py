"""Hidden states → policy loss, computing no row that cannot matter."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels import check
from r1kernels.ops.group_advantage import group_advantage
from r1kernels.ops.linear_logprob import head_logprob
from r1kernels.ops.policy_loss import policy_loss

# Target of masked rows: no vocabulary has it, and unlike −100 no user writes it by accident.
SKIPPED = torch.iinfo(torch.int32).min


class FusedLoss(NamedTuple):
    """``loss`` is differentiable, the others are detached.

    logprob and entropy: [T], float32, in nats, zero at masked rows. regime: what the head's
    gradient costs: "kept", "recompute", "frozen_head" or "forward_only".
    """

    loss: Tensor
    logprob: Tensor
    entropy: Tensor | None
    metrics: dict[str, Tensor]
    regime: str


def fused_linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    advantages: Tensor | None = None,
    rewards: Tensor | None = None,
    group_ids: Tensor | None = None,
    cu_seqlens: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    mask: Tensor | None = None,
    beta: float = 0.0,
    entropy_coef: float = 0.0,
    **options: Any,
) -> FusedLoss:
    """``policy_loss(linear_logprob(hidden, weight, target), advantages)`` with the work left out.

    Masked rows are not computed at all. Rows with a zero advantage (where neither KL nor entropy
    gives them a gradient), and rows that the clip cuts off, are skipped in the backward pass.

    Args:
        hidden, weight, target, bias, temperature, logit_scale, softcap: see ``linear_logprob``;
            row t of hidden is the one that predicts target[t].
        advantages: [B] or [T], see ``policy_loss``; or else
        rewards, group_ids: [B], of complete groups; ``group_advantage`` with its defaults.
        entropy: compute the entropies too; implied by a nonzero ``entropy_coef``.
        mask, beta, entropy_coef, options: see ``policy_loss``, all of whose keywords are taken.

    Returns:
        ``FusedLoss(loss, logprob, entropy, metrics, regime)``.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    name = "fused_linear_grpo_loss"
    if (advantages is None) == (rewards is None and group_ids is None):
        got = "neither" if advantages is None else "both"
        raise ValueError(
            f"{name}: advantages: expected either advantages, or rewards and group_ids; got {got}"
        )
    if advantages is None:
        if rewards is None or group_ids is None:
            missing = "rewards" if rewards is None else "group_ids"
            raise ValueError(f"{name}: {missing}: expected a tensor of shape [B], got None")
        advantages = group_advantage(rewards, group_ids)
    shapes = check.Shapes(name)
    shapes("target", target, "T", check.INTS)
    shapes("cu_seqlens", cu_seqlens, "B+1", check.INTS)
    if mask is not None:
        shapes("mask", mask, "T", (torch.bool,))
        target = target.where(mask, SKIPPED)
    keep = None
    if beta == 0 and entropy_coef == 0 and options.get("loss_type") != "kl_cov":
        keep = _rows_with_advantage(advantages, cu_seqlens, target.shape[0])
    logprob, entropies, regime = head_logprob(
        name, hidden, weight, target, bias, temperature, logit_scale, softcap,
        entropy or entropy_coef != 0, entropy_grad=entropy_coef != 0, ignore_index=SKIPPED,
        keep=keep,
    )  # fmt: skip
    loss, metrics = policy_loss(
        logprob, advantages, cu_seqlens=cu_seqlens, mask=mask, beta=beta, entropy=entropies,
        entropy_coef=entropy_coef, **options,
    )  # fmt: skip
    if entropies is not None:
        entropies = entropies.detach()
    return FusedLoss(loss, logprob.detach(), entropies, metrics, regime)


def _rows_with_advantage(advantages: Tensor, cu_seqlens: Tensor, rows: int) -> Tensor | None:
    """[T] bool: rows of sequences with a nonzero advantage; None for advantages by token."""
    if advantages.shape != (cu_seqlens.shape[0] - 1,):
        return None
    steps = torch.arange(rows, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    counts = torch.cat([advantages != 0, advantages.new_zeros(1, dtype=torch.bool)])
    return counts[torch.searchsorted(cu_seqlens[1:], steps, right=True)]  # last: in no sequence
