"""Hidden states → policy loss, computing no row that cannot matter."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.remembered import remembered
from r1kernels.head.fused_linear_loss import FusedLoss, through_head
from r1kernels.head.head import accumulate_dtype
from r1kernels.policy import policy_loss_inputs as inputs
from r1kernels.policy.policy_loss import policy_loss
from r1kernels.policy.policy_loss_options import (
    LossOptions,
    PolicyLossOptions,
    options_of_call,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def fused_linear_grpo_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    advantages: Tensor | None = None,
    rewards: Tensor | None = None,
    group_ids: Tensor | None = None,
    scale_rewards: str = "group",
    baseline: str = "mean",
    cu_seqlens: Tensor,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    candidate_ids: Tensor | None = None,
    candidate_offsets: Tensor | None = None,
    tp_group: ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    entropy: bool = False,
    mask: Tensor | None = None,
    old_logprob: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    sampling_logprob: Tensor | None = None,
    num_active_tokens: float | Tensor | None = None,
    num_sequences: float | Tensor | None = None,
    options: PolicyLossOptions | None = None,
    **keywords: Unpack[LossOptions],
) -> FusedLoss:
    """``policy_loss(linear_logprob(hidden, weight, target), advantages)`` with the work left out.

    Masked rows are not computed at all. Rows with a zero advantage (where neither KL nor entropy
    gives them a gradient), and rows that the clip, the rollout correction or the off-policy mask
    cuts off, are skipped in the backward pass. A loss of your own: ``fused_linear_loss``.

    Args:
        hidden, weight, target, bias, temperature, logit_scale, softcap, candidate_ids,
            candidate_offsets, tp_group, vocab_start, vocab_size: see ``linear_logprob``; row t of
            hidden is the one that predicts target[t], as ``pack`` makes them of padded sequences.
        advantages: [B] or [T], see ``policy_loss``; or else
        rewards, group_ids: [B], of complete groups; scale_rewards, baseline: see
            ``group_advantage``.
        entropy: compute the entropies too; implied by a nonzero ``entropy_coef``.
        cu_seqlens, mask, old_logprob, ref_logprob, sampling_logprob, num_active_tokens,
            num_sequences: see ``policy_loss``, and so for
        options: a ``PolicyLossOptions``, in place of
        keywords: its fields.

    Returns:
        ``FusedLoss(loss, logprob, entropy, metrics, regime)``.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    name = "fused_linear_grpo_loss"
    o = options_of_call(name, options, _options, keywords)
    _check(
        entropy, hidden, target, cu_seqlens, mask, advantages, rewards,
        group_ids, scale_rewards, baseline,
    )  # fmt: skip
    inputs.look_at_sequences(name, cu_seqlens, hidden.shape[0], "hidden")
    given = inputs.advantages_or_rewards(name, advantages, rewards, group_ids)
    if group_ids is not None:
        given = inputs.advantages_of_groups(
            given, group_ids, scale_rewards, baseline, cu_seqlens, target.shape[0], mask
        )

    def loss_fn(logprob: Tensor, entropies: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        with check.on_behalf_of(name):
            return policy_loss(
                logprob, given, cu_seqlens=cu_seqlens, mask=mask, old_logprob=old_logprob,
                ref_logprob=ref_logprob, sampling_logprob=sampling_logprob, entropy=entropies,
                num_active_tokens=num_active_tokens, num_sequences=num_sequences, options=o,
            )  # fmt: skip

    keep = None
    # KL-Cov's penalty is the one term of a policy loss that does not grow with the advantage.
    if o.beta == 0 and o.entropy_coef == 0 and o.loss_type != "kl_cov":
        keep = _rows_with_advantage(given, cu_seqlens, target.shape[0])
    return through_head(
        name, loss_fn, hidden, weight, target, bias, temperature, logit_scale, softcap, mask,
        entropy or o.entropy_coef != 0, entropy_grad=o.entropy_coef != 0, keep=keep,
        candidate_ids=candidate_ids, candidate_offsets=candidate_offsets, tp_group=tp_group,
        vocab_start=vocab_start, vocab_size=vocab_size,
    )  # fmt: skip


@remembered
def _options(**keywords: Any) -> PolicyLossOptions:
    name = "fused_linear_grpo_loss"
    check.known_options(name, keywords, KEYWORDS)
    with check.on_behalf_of(name):
        return PolicyLossOptions(**keywords)


@remembered
def _check(
    entropy: bool,
    hidden: Tensor,
    target: Tensor,
    cu_seqlens: Tensor,
    mask: Tensor | None,
    advantages: Tensor | None,
    rewards: Tensor | None,
    group_ids: Tensor | None,
    scale_rewards: str,
    baseline: str,
) -> None:
    name = "fused_linear_grpo_loss"
    shapes = check.Shapes(name, check.PACK)
    check.flag(name, "entropy", entropy)
    shapes("hidden", hidden, "T H", check.FLOATS)
    shapes("target", target, "T", check.INTS)
    inputs.sequences(shapes, cu_seqlens)
    if mask is not None:
        shapes("mask", mask, "T", (torch.bool,))
    inputs.check_advantage_inputs(
        shapes, advantages, rewards, group_ids, scale_rewards, baseline,
        (accumulate_dtype(hidden.dtype),),
    )  # fmt: skip


KEYWORDS = (
    *inspect.signature(fused_linear_grpo_loss).parameters,
    *LossOptions.__annotations__,
)


def _rows_with_advantage(advantages: Tensor, cu_seqlens: Tensor, rows: int) -> Tensor | None:
    """[T] bool: rows of sequences with a nonzero advantage; None for advantages by token."""
    if advantages.shape != (cu_seqlens.shape[0] - 1,):
        return None
    steps = torch.arange(rows, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    counts = torch.cat([advantages != 0, advantages.new_zeros(1, dtype=torch.bool)])
    return counts[torch.searchsorted(cu_seqlens[1:], steps, right=True)]  # last: in no sequence
