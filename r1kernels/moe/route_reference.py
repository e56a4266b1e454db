"""moe_route and its gradient in plain PyTorch, in float64.

Choices are made in float64 on every backend: two scores that float32 cannot tell apart then have
the same order everywhere. A row has only k of them to round.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-20  # under the sum that weights are normalised by


def score_of(z: Tensor, score: str) -> Tensor:
    """Scores of float64 logits [T, E], or of any shape unless it is the softmax of a row."""
    if score == "softmax":
        return z.softmax(-1)
    # Above the threshold softplus is z: to the last bit from 34 on, and eᶻ overflows from 710 on.
    return z.sigmoid() if score == "sigmoid" else F.softplus(z, threshold=100.0).sqrt()


def keys(logits: Tensor, score: str, order: str, bias: Tensor | None, num_groups: int) -> Tensor:
    """[T, E] float64: what choices are made by, −inf for NaN.

    Logits, wherever a score would only be a monotone function of them: it could round two of them
    to the same value.
    """
    z = logits.double()
    monotone = bias is None and (num_groups == 1 or score == "softmax")
    key = z if monotone or order == "topk_first" else score_of(z, score)
    if bias is not None:
        key = key + bias.double()
    return key.masked_fill(key.isnan(), -torch.inf)


def choose(
    key: Tensor, top_k: int, num_groups: int, top_k_groups: int, best_of_group: int
) -> Tensor:
    """[T, k]: the k best keys in the best groups, best first; of equal ones the lower index.

    A group counts as much as its best key, or as the sum of its two best, compared to 48 bits. What
    is not in one of the best groups comes after everything that is, −inf included.
    """
    order = key.argsort(dim=1, descending=True, stable=True)
    if num_groups > 1:
        size = key.shape[1] // num_groups
        group = key.view(-1, num_groups, size).topk(best_of_group, -1).values.sum(-1)
        if best_of_group == 2:
            group = to_48_bits(group)
        group = group.masked_fill(group.isnan(), -torch.inf)  # +inf − inf
        best = group.argsort(dim=1, descending=True, stable=True)[:, :top_k_groups]
        outside = torch.ones_like(group, dtype=torch.bool).scatter_(1, best, False)
        last = outside.gather(1, order // size).to(torch.int8)
        order = order.gather(1, last.argsort(dim=1, stable=True))
    return order[:, :top_k]


def to_48_bits(sums: Tensor) -> Tensor:
    """Float64 ``sums`` with the last five bits rounded off.

    σ(z) + σ(−z) is 1, but which of these sums is 1 to the last bit depends on the exponential at
    hand: PyTorch's own differs between an element within a vector and one past the last.
    """
    return ((sums.contiguous().view(torch.int64) + 16) & -32).view(torch.float64)


def scores_of_choices(z: Tensor, ids: Tensor, score: str, order: str) -> Tensor:
    """[T, k] float64: the scores of chosen experts, 0 where ``ids`` names none."""
    there = ids < z.shape[1]
    safe = ids.where(there, 0)
    if order == "topk_first":
        chosen = z.gather(1, safe).masked_fill(~there, -torch.inf)
        found = score_of(chosen, score)
    else:
        found = score_of(z, score).gather(1, safe)
    return found.where(there, 0)


def normalises(score: str, order: str, normalize: bool) -> bool:
    """Whether the chosen scores are divided by their sum; a softmax of theirs sums to 1."""
    return normalize and not (score == "softmax" and order == "topk_first")


def weigh(
    logits: Tensor, ids: Tensor, score: str, order: str, normalize: bool, scale: float
) -> Tensor:
    """[T, k]: weights of the experts that ``ids`` names, in float32 (float64 for float64)."""
    s = scores_of_choices(logits.double(), ids, score, order)
    if normalises(score, order, normalize):
        s = s / (s.sum(1, keepdim=True) + EPS)
    return (s * scale).to(torch.promote_types(logits.dtype, torch.float32))


def backward(
    grad: Tensor, logits: Tensor, ids: Tensor, score: str, order: str, normalize: bool, scale: float
) -> Tensor:
    """Gradient of the logits [T, E]: that of s through the normaliser, then of z through s."""
    z = logits.double()
    there = ids < z.shape[1]
    safe = ids.where(there, 0)
    s = scores_of_choices(z, ids, score, order)
    ds = (grad.double() * scale).where(there, 0)
    if normalises(score, order, normalize):
        total = s.sum(1, keepdim=True) + EPS
        ds = ((ds - (ds * s).sum(1, keepdim=True) / total) / total).where(there, 0)
    chosen = z.gather(1, safe)
    if score == "sigmoid":
        dz = ds * s * (1 - s)
    elif score == "sqrtsoftplus":
        dz = (ds * chosen.sigmoid() / (2 * s)).where(s > 0, 0)
    elif order == "topk_first":
        dz = s * (ds - (ds * s).sum(1, keepdim=True))
    else:
        p = z.softmax(-1)
        dp = torch.zeros_like(z).scatter_add_(1, safe, ds)
        return (p * (dp - (dp * p).sum(1, keepdim=True))).to(logits.dtype)
    return torch.zeros_like(z).scatter_add_(1, safe, dz.where(there, 0)).to(logits.dtype)
