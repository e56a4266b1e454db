"""Drawing a token from logits."""

from __future__ import annotations

import torch
from torch import Tensor


def sample(
    logits: Tensor, uniform: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """Tokens [B] by inverse transform of `uniform` [B], and their log-probabilities [B]."""
    if temperature == 0:
        token = logits.argmax(-1)
        return token, logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
    logprobs = (logits / temperature).log_softmax(-1)
    if top_p < 1:
        ordered, order = logprobs.sort(-1, descending=True)
        probability = ordered.exp()
        outside = probability.cumsum(-1) - probability >= top_p  # the token that crosses stays
        ordered = ordered.masked_fill(outside, -torch.inf).log_softmax(-1)
        logprobs = torch.empty_like(logprobs).scatter_(1, order, ordered)
    cumulative = logprobs.double().exp().cumsum(-1)  # double: 50,000 terms must sum to 1
    point = uniform[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, point, right=True).clamp(max=logits.shape[1] - 1)
    return token[:, 0], logprobs.gather(1, token)[:, 0]
