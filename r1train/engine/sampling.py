"""From hidden states to the next tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from r1kernels import filter_logits, sample_logprob
from r1kernels.head.linear_sample_logprob import linear_sample_logprob
from r1kernels.hf import Head
from r1train.engine.base import Sampling
from r1train.model.products import product

LARGE = 4096
"""Tokens of a vocabulary: fewer are too few parts for several threads."""
WRITTEN, FILTERED = 12, 34
"""Bytes for each token of a vocabulary: of logits and what the head makes of them, or filters."""


def logits_of(head: Head, hidden: Tensor) -> Tensor:
    """Logits [B, V] in float32 of hidden states [B, H].

    On a CPU a row has the same logits whatever else is in the batch.
    """
    rows = head.rows(hidden)
    multiply = product if rows.is_cpu else F.linear
    return head.map(multiply(rows, head.weight, head.bias).float())


def sample(
    head: Head, hidden: Tensor, uniform: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """`draw` of the logits of hidden states [B, H].

    On a CPU those of a large vocabulary are never written, where nothing asks for them.
    """
    if _writes(head.weight.shape[0], hidden.device, sampling):
        return draw(logits_of(head, hidden), uniform, sampling)
    return linear_sample_logprob(
        head.rows(hidden), head.weight, uniform, temperature=sampling.temperature, **head.options
    )


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B] by one number each, float64 [B], and their log-probabilities float32 [B].

    Those are of the distribution that was drawn from: after the filters, at the temperature. With
    temperature 0 the token is the most likely one and its log-probability that at 1.
    """
    temperature = sampling.temperature
    if _filters(sampling):
        logits = filter_logits(
            logits,
            temperature=temperature,
            top_k=sampling.top_k or None,
            top_p=sampling.top_p,
            min_p=sampling.min_p or None,
        )
    return sample_logprob(logits, uniform, temperature=temperature)


def bytes_of_row(vocabulary: int, device: torch.device, sampling: Sampling) -> int:
    """What `sample` holds for each row at one time, about and at most."""
    if not _writes(vocabulary, device, sampling):
        return 0
    return vocabulary * (FILTERED if _filters(sampling) else WRITTEN)


def _writes(vocabulary: int, device: torch.device, sampling: Sampling) -> bool:
    """Whether there are logits at all."""
    return _filters(sampling) or device.type != "cpu" or vocabulary < LARGE


def _filters(sampling: Sampling) -> bool:
    """The most likely token, at temperature 0, is left by all of them."""
    some = sampling.top_k or sampling.top_p < 1 or sampling.min_p
    return bool(sampling.temperature and some)
