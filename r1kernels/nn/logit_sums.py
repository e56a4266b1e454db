"""What a loss wants of the logits beside the log-probability of the target, never all at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BYTES = 32 << 20  # of the logits that are there at a time
COLUMNS = 4096  # of the head that are widened at a time


def target_logits(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, softcap: float | None
) -> Tensor:
    """[T]: the logit of each row's target, in float32 (float64 for float64)."""
    dtype = _wide(hidden)
    z = (hidden.to(dtype) * F.embedding(target, weight).to(dtype)).sum(-1)
    if bias is not None:
        z = z + bias[target].to(dtype)
    return _capped(z, softcap)


def weighted_logit_sums(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    classes: Tensor | None,
) -> Tensor:
    """[T]: Σ_j classes_j·z_j over the vocabulary, in float32; classes None for ones.

    Without a softcap the sum is taken of the head, else of the logits of a few rows at a time,
    which are made again in the backward pass.
    """
    dtype = _wide(hidden)
    if softcap is None:
        ones = weight.new_ones(len(weight), dtype=dtype) if classes is None else classes
        parts = zip(ones.split(COLUMNS), weight.split(COLUMNS), strict=True)
        total = torch.stack([part @ rows.to(dtype) for part, rows in parts]).sum(0)
        sums = hidden.to(dtype) @ total
        return sums if bias is None else sums + ones @ bias.to(dtype)

    def of(rows: Tensor) -> Tensor:
        z = _logits(rows, weight, bias, softcap)
        return z.sum(-1) if classes is None else z @ classes

    return torch.cat([checkpoint(of, rows, use_reentrant=False) for rows in _few(hidden, weight)])


@torch.no_grad()
def predicted_tokens(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None
) -> Tensor:
    """[T] int64: the first id with the largest logit, which has the precision of ``hidden``."""
    return torch.cat(
        [_logits(rows, weight, bias, softcap).argmax(-1) for rows in _few(hidden, weight)]
    )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    return _capped(F.linear(hidden, weight, bias).to(_wide(hidden)), softcap)


def _capped(z: Tensor, softcap: float | None) -> Tensor:
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def _few(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return hidden.split(max(1, BYTES // (4 * max(len(weight), 1))))


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
