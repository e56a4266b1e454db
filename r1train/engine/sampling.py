"""From hidden states to the next tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from r1kernels import filter_logits, sample_logprob
from r1kernels.head.linear_sample_logprob import linear_sample_logprob
from r1kernels.hf import Head
from r1train.engine.base import Sampling
from r1train.model.products import product

LARGE = 4096
"""Tokens of a vocabulary: fewer are too few parts for several threads."""


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
    filtered = sampling.temperature and (sampling.top_k or sampling.top_p < 1 or sampling.min_p)
    if filtered or not hidden.is_cpu or head.weight.shape[0] < LARGE:
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
    top_k, top_p = sampling.top_k or None, sampling.top_p if sampling.top_p < 1 else None
    min_p = sampling.min_p or None
    if temperature and (top_k or top_p or min_p):
        logits = filter_logits(
            logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
        )
    return sample_logprob(logits, uniform, temperature=temperature)
