"""The tokens that top-k, top-p and min-p leave to a sampler."""

from __future__ import annotations

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.head import head


def filter_logits(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Tensor:
    """Logits with −inf where temperature, then top-k, top-p and min-p leave nothing to draw.

    The order is that of vLLM and HuggingFace. top-k keeps the logits that reach the k-th largest,
    ties included. top-p keeps the fewest of those, the most probable first, whose probabilities
    (renormalised) sum to at least p, and never fewer than one. min-p keeps those whose probability
    is at least so much of the largest.

    >>> kept = filter_logits(logits, temperature=0.7, top_p=0.95)
    >>> token, logprob = sample_logprob(kept, uniform, temperature=0.7)

    Args:
        logits: [T, V], floating point; −inf removes a token.
        temperature: divides the logits before all else, positive: a number, or one a row, [T],
            float32 (float64 for float64).
        top_k: at least 1; None for no limit.
        top_p: in (0, 1]; None for 1.
        min_p: in [0, 1]; None for 0.

    Returns:
        [T, V], dtype of logits, not divided by the temperature.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    name = "filter_logits"
    shapes = check.Shapes(name)
    shapes("logits", logits, "T V", check.FLOATS)
    z = tempered(shapes, logits, temperature)
    left = filtered(name, z, top_k, top_p, min_p)
    return logits.masked_fill(left == -torch.inf, -torch.inf)  # a NaN stays


def tempered(shapes: check.Shapes, logits: Tensor, temperature: float | Tensor) -> Tensor:
    """[T, V] float32 (float64 for float64): logits, less the largest, over the temperature.

    A small temperature would make infinities of them all.
    """
    head.check_temperature(shapes, temperature, logits)
    rows = head.row_temperature(temperature, logits)
    if check.may_look(logits):
        head.check_rows(shapes.op, logits.shape[1], rows)
    wide = logits.to(head.accumulate_dtype(logits.dtype))
    return head.scale(wide - wide.amax(1, keepdim=True), rows, 1.0, None)


def filtered(
    op: str, z: Tensor, top_k: int | None, top_p: float | None, min_p: float | None = None
) -> Tensor:
    """Tempered logits z [T, V] with −inf where nothing is left."""
    if top_k is not None:
        if check.whole(op, "top_k", top_k) < 1:
            raise ValueError(
                f"{op}: top_k: expected a whole number, 1 or more, got {top_k} (None: no limit)"
            )
        least = z.topk(min(top_k, z.shape[1])).values[:, -1:]
        z = z.masked_fill(z < least, -torch.inf)
    if top_p is not None and not 0 < check.number(op, "top_p", top_p) <= 1:
        raise ValueError(f"{op}: top_p: expected a number in (0, 1], got {top_p}")
    if top_p is not None and top_p < 1:
        probability, order = z.softmax(-1).sort(descending=True, stable=True)
        before = probability.cumsum(-1) - probability
        beyond = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p)
        z = z.masked_fill(beyond, -torch.inf)
    if min_p is not None:
        if not 0 <= check.number(op, "min_p", min_p) <= 1:
            raise ValueError(f"{op}: min_p: expected a number in [0, 1], got {min_p}")
        probability = z.softmax(-1)
        z = z.masked_fill(probability < min_p * probability.amax(-1, keepdim=True), -torch.inf)
    return z
