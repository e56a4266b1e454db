"""Hidden states → a loss of the caller's own, through the fused head."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.remembered import remembered
from r1kernels.head.linear_logprob import head_logprob

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Target of masked rows: no vocabulary has it, and unlike −100 no user writes it by accident.
SKIPPED = torch.iinfo(torch.int32).min


class FusedLoss(NamedTuple):
    """A loss that went through a linear head, and what was found on the way, detached."""

    loss: Tensor
    """0-d, differentiable."""
    logprob: Tensor
    """[T] float32 (float64 for float64 hidden), in nats, 0 at masked rows."""
    entropy: Tensor | None
    """The same of the entropies; None where they were not asked for."""
    metrics: dict[str, Tensor]
    """0-d tensors by name, those of ``policy_loss``; empty for a loss of your own."""
    regime: str
    """How the gradient of the head is made: "kept" (probabilities of the forward pass are kept),
    "recompute" (they are made again), "frozen_head" (the gradient of hidden is made in the forward
    pass, the head has none) or "forward_only" (nothing requires one)."""


def fused_linear_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    loss_fn: Callable[..., Tensor],
    *,
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
) -> FusedLoss:
    """``loss_fn(logprob)``, or ``loss_fn(logprob, entropy)``, without ever making the logits.

    >>> fused_linear_loss(hidden, weight, target, lambda logprob: -(advantage * logprob).mean())

    autograd differentiates ``loss_fn`` on [T] vectors; the head does the rest in the cheapest of
    its regimes, as for ``fused_linear_grpo_loss``: rows that are masked, or get no gradient from
    ``loss_fn``, cost nothing in the backward pass.

    Args:
        hidden, weight, target, bias, temperature, logit_scale, softcap, candidate_ids,
            candidate_offsets, tp_group, vocab_start, vocab_size: see ``linear_logprob``.
        loss_fn: from logprob [T] (float32, or float64 for float64 hidden; in nats) to a 0-d loss;
            everything else it needs it brings along.
        entropy: give it the entropies [T] too, with their gradient.
        mask: [T] bool, True where a token counts; False: not computed, and 0 in what loss_fn gets.

    Returns:
        ``FusedLoss(loss, logprob, entropy, metrics, regime)``; metrics is empty.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """

    check.flag("fused_linear_loss", "entropy", entropy)
    if not callable(loss_fn):
        raise TypeError(
            f"fused_linear_loss: loss_fn: expected a function, got {check.described(loss_fn)}"
        )

    def with_metrics(*outputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = loss_fn(*outputs if entropy else outputs[:1])
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            got = check.described(loss)
            raise ValueError(f"fused_linear_loss: loss_fn: expected a 0-d tensor, got {got}")
        return loss, {}

    return through_head(
        "fused_linear_loss", with_metrics, hidden, weight, target, bias, temperature, logit_scale,
        softcap, mask, entropy, entropy_grad=entropy, candidate_ids=candidate_ids,
        candidate_offsets=candidate_offsets, tp_group=tp_group, vocab_start=vocab_start,
        vocab_size=vocab_size,
    )  # fmt: skip


def through_head(
    name: str,
    loss_fn: Callable[..., tuple[Tensor, dict[str, Tensor]]],
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    temperature: float | Tensor,
    logit_scale: float,
    softcap: float | None,
    mask: Tensor | None,
    entropy: bool,
    **head: Any,
) -> FusedLoss:
    """Run the head on the rows of ``mask``, and ``loss_fn(logprob, entropy or None)`` on that."""
    _check_mask(name, target, mask)
    if mask is not None:
        target = target.where(mask, SKIPPED)
    logprob, entropies, regime = head_logprob(
        name, hidden, weight, target, bias, temperature, logit_scale, softcap, entropy,
        ignore_index=SKIPPED, **head,
    )  # fmt: skip
    loss, metrics = loss_fn(logprob, entropies)
    if entropies is not None:
        entropies = entropies.detach()
    return FusedLoss(loss, logprob.detach(), entropies, metrics, regime)


@remembered
def _check_mask(name: str, target: Tensor, mask: Tensor | None) -> None:
    shapes = check.Shapes(name, check.PACK)
    shapes("target", target, "T", check.INTS)
    if mask is not None:
        shapes("mask", mask, "T", (torch.bool,))
