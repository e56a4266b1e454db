"""What keeps the load of experts even: the balance loss of a sequence, and the bias of choices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from r1kernels.core import check
from r1kernels.moe import route_reference as formulas
from r1kernels.moe.route import SCORES, moe_route
from r1kernels.policy.policy_loss_inputs import sequences
from r1kernels.policy.policy_loss_reference import Sequences

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def moe_balance_loss(
    logits: Tensor,
    top_k: int,
    *,
    score: str = "sigmoid",
    cu_seqlens: Tensor | None = None,
    mask: Tensor | None = None,
    coef: float = 1e-4,
) -> Tensor:
    """DeepSeek-V3's sequence-wise balance loss (arXiv 2412.19437, eq. 17–20).

    Of a sequence of T tokens, with s the scores of its experts, without bias or groups:
    L = coef·Σ_i f_i·P_i, where f_i = E/(k·T)·(tokens that have expert i among their k best) is a
    constant and P_i = (1/T)·Σ_t s_ti/Σ_j s_tj. The mean of the sequences that have tokens is
    returned, 0 where none has. An even load costs ``coef``, the worst E/k times that.

    Args:
        logits: [T, E], float32, bfloat16, float16 or float64, of packed sequences.
        top_k: k, experts of a token.
        score: "sigmoid", "softmax" or "sqrtsoftplus", as in ``moe_route``.
        cu_seqlens: [B + 1] int32 or int64: sequence b is rows cu_seqlens[b] … cu_seqlens[b+1] − 1;
            None stands for one sequence.
        mask: [T] bool, False for a token that counts nowhere, such as padding.
        coef: factor of the loss, α.

    Returns:
        A number, float32 (float64 for float64 logits). Gradients flow to logits.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    name = "moe_balance_loss"
    shapes = check.Shapes(name)
    shapes("logits", logits, "T E", check.FLOATS)
    check.choice(name, "score", score, SCORES)
    rows, experts = logits.shape
    check.count(name, "top_k", top_k)
    check.number(name, "coef", coef)
    if top_k > experts:
        raise ValueError(f"{name}: top_k: expected top_k ≤ E = {experts}, got {top_k}")
    if cu_seqlens is None:
        cu_seqlens = torch.tensor([0, rows], device=logits.device)
    sequences(shapes, cu_seqlens)
    if mask is None:
        mask = torch.ones(rows, dtype=torch.bool, device=logits.device)
    shapes("mask", mask, "T", (torch.bool,))

    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits.masked_fill(~mask[:, None], 0)  # whatever padding holds
    ids = moe_route(logits.detach(), top_k, score=score, align=None).ids
    s = formulas.score_of(logits, score)
    probability = s if score == "softmax" else s / (s.sum(1, keepdim=True) + formulas.EPS)

    # Whole numbers: the order in which they are added up does not matter. The last sequence takes
    # tokens that are in none.
    packed = Sequences(cu_seqlens, rows)
    choices = torch.zeros((packed.count + 1) * experts, dtype=torch.int64, device=logits.device)
    index = packed.of_row[:, None] * experts + ids
    choices.scatter_add_(0, index.flatten(), mask[:, None].expand_as(ids).flatten().long())
    load = choices.view(-1, experts).to(probability.dtype)
    # Σ_i f_i·P_i as a sum over tokens: that of each expert's probabilities is never needed.
    row = (load[packed.of_row] * probability).sum(1, dtype=torch.float64).where(mask, 0)
    tokens = packed.total(mask.double())
    loss = packed.total(row) * (experts / top_k) / tokens.clamp(min=1).square()
    return (coef * loss.sum() / (tokens > 0).sum().clamp(min=1)).to(probability.dtype)


def update_expert_bias(
    bias: Tensor, counts: Tensor, *, rate: float = 1e-3, group: ProcessGroup | None = None
) -> None:
    """b_i += rate·sign(mean of counts − counts_i), in place (arXiv 2412.19437, 2.1.2).

    Once an optimizer step, with the counts of all its tokens. An expert that has exactly its share
    keeps its bias: counts are compared as whole numbers.

    Args:
        bias: [E] float32, added to the scores for the choice of experts. Not narrower: beside a
            bias of 5 a step of 0.001 is less than bfloat16 can tell apart (0.03), so it would
            never move. (``model.to(torch.bfloat16)`` casts it like any other buffer.)
        counts: [E] int32 or int64, how many rows each expert got, as in ``Routing``; on this rank
            if there is a ``group``. Left as it is.
        rate: γ, the step.
        group: ranks whose counts are added up first; their biases stay the same if they were.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    name = "update_expert_bias"
    shapes = check.Shapes(name)
    if isinstance(bias, Tensor) and bias.dtype in (torch.bfloat16, torch.float16):
        got = str(bias.dtype).removeprefix("torch.")
        raise TypeError(
            f"{name}: bias: expected dtype float32, got {got}, in which a step of {rate} vanishes "
            "beside a bias of 5: keep it in float32 where the model is cast"
        )
    shapes("bias", bias, "E", (torch.float32,))
    shapes("counts", counts, "E", check.INTS)
    check.positive(name, "rate", rate)
    everywhere = counts.to(torch.int64, copy=True)
    if group is not None:
        dist.all_reduce(everywhere, group=group)
    missing = everywhere.sum() - len(everywhere) * everywhere  # E·(mean − count)
    with torch.no_grad():
        bias.add_(missing.sign().to(bias.dtype), alpha=rate)
