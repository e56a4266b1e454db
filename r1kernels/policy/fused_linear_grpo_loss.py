"""Hidden states → policy loss, computing no row that cannot matter."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.remembered import remembered
from r1kernels.head.fused_linear_loss import FusedLoss, through_head
from r1kernels.head.head import accumulate_dtype
from r1kernels.policy import policy_loss_inputs as inputs
from r1kernels.policy.policy_loss import policy_loss
from r1kernels.policy.policy_loss_options import PolicyLossOptions

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
    loss_type: str = "grpo",
    beta: float = 0.0,
    entropy_coef: float = 0.0,
    **options: Unpack[PolicyLossOptions],
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
        cu_seqlens, mask, loss_type, beta, entropy_coef, options: see ``policy_loss``, all of whose
            keywords are taken (``PolicyLossOptions`` lists the others).

    Returns:
        ``FusedLoss(loss, logprob, entropy, metrics, regime)``.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    name = "fused_linear_grpo_loss"
    check.known_options(name, options, KEYWORDS)
    _check(
        beta, entropy_coef, entropy, hidden, target, cu_seqlens, mask, advantages, rewards,
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
                logprob, given, cu_seqlens=cu_seqlens, mask=mask, loss_type=loss_type, beta=beta,
                entropy=entropies, entropy_coef=entropy_coef, **options,
            )  # fmt: skip

    keep = None
    # KL-Cov's penalty is the one term of a policy loss that does not grow with the advantage.
    if beta == 0 and entropy_coef == 0 and loss_type != "kl_cov":
        keep = _rows_with_advantage(given, cu_seqlens, target.shape[0])
    return through_head(
        name, loss_fn, hidden, weight, target, bias, temperature, logit_scale, softcap, mask,
        entropy or entropy_coef != 0, entropy_grad=entropy_coef != 0, keep=keep,
        candidate_ids=candidate_ids, candidate_offsets=candidate_offsets, tp_group=tp_group,
        vocab_start=vocab_start, vocab_size=vocab_size,
    )  # fmt: skip


@remembered
def _check(
    beta: float,
    entropy_coef: float,
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
    check.number(name, "beta", beta)
    check.number(name, "entropy_coef", entropy_coef)
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
    *PolicyLossOptions.__annotations__,
)


def _rows_with_advantage(advantages: Tensor, cu_seqlens: Tensor, rows: int) -> Tensor | None:
    """[T] bool: rows of sequences with a nonzero advantage; None for advantages by token."""
    if advantages.shape != (cu_seqlens.shape[0] - 1,):
        return None
    steps = torch.arange(rows, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    counts = torch.cat([advantages != 0, advantages.new_zeros(1, dtype=torch.bool)])
    return counts[torch.searchsorted(cu_seqlens[1:], steps, right=True)]  # last: in no sequence
