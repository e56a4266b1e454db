"""The ids that top-k and top-p leave to a sampler, as ``linear_logprob`` takes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.head.logit_filters import filtered, tempered


class Candidates(NamedTuple):
    """Row t may draw ids[offsets[t]:offsets[t + 1]]."""

    ids: Tensor
    """[N] int64: those of all rows, row after row, ascending in each."""
    offsets: Tensor
    """[T + 1] int64, from 0 to N."""


def candidates(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    target: Tensor | None = None,
) -> Candidates:
    """What is left of each row after temperature, then top-k, then top-p: vLLM's and HF's order.

    top-k keeps the logits that reach the k-th largest, ties included. top-p keeps the fewest of
    those, the most probable first, whose probabilities (renormalised after top-k) sum to at least
    p, and never fewer than one.

    >>> kept = candidates(logits, temperature=0.7, top_k=50, top_p=0.95, target=target)
    >>> linear_logprob(hidden, weight, target, temperature=0.7,
    ...                candidate_ids=kept.ids, candidate_offsets=kept.offsets)

    Args:
        logits: [T, V], floating point, as the model gives them; −inf removes an id.
        temperature: divides the logits first, positive: a number, or one a row, [T], float32
            (float64 for float64).
        top_k: at least 1; None for no limit.
        top_p: in (0, 1]; None for 1.
        target: [T], int64 or int32: kept whatever its rank. The sampler drew it, so it was kept
            there; logits that are made again may differ in the last bits.

    Returns:
        ``Candidates(ids [N], offsets [T+1])``, the ids of a row ascending.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    name = "candidates"
    shapes = check.Shapes(name, check.PACK)
    shapes("logits", logits, "T V", check.FLOATS)
    kept = filtered(name, tempered(shapes, logits, temperature), top_k, top_p) > -torch.inf
    if target is not None:
        shapes("target", target, "T", check.INTS)
        if check.may_look(target):
            check.in_range(name, "target", target, logits.shape[1])
        kept = kept.scatter(1, target.long()[:, None], True)
    counts = kept.sum(-1)
    return Candidates(kept.nonzero()[:, 1], torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
