"""Drawing a token: as ``generate`` of HuggingFace does it, and by inverse transform in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.peers.adapt import Peer


def tempered(logits: Tensor, temperature: Tensor | None) -> Tensor:
    z = logits.float()
    return z if temperature is None else z / temperature[:, None]


def multinomial(
    logits: Tensor, uniform: Tensor, temperature: Tensor | None
) -> Mapping[str, Tensor]:
    """Its numbers are its own: there is no result to compare, and no log-probability."""
    torch.multinomial(tempered(logits, temperature).softmax(-1), 1)
    return {}


def inverse_transform(
    logits: Tensor, uniform: Tensor, temperature: Tensor | None
) -> Mapping[str, Tensor]:
    logprob = tempered(logits, temperature).log_softmax(-1)
    ends = logprob.double().exp().cumsum(-1)  # double: 50,000 terms must sum to 1
    point = uniform.view(torch.float64)[:, None] * ends[:, -1:]
    token = torch.searchsorted(ends, point, right=True).clamp(max=logits.shape[1] - 1)
    return {"token": token[:, 0], "logprob": logprob.gather(1, token)[:, 0]}


PEERS = (
    Peer("multinomial", ops={"sample_logprob": multinomial}),
    Peer("cumsum", ops={"sample_logprob": inverse_transform}),
)
