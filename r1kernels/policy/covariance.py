"""Clip-Cov and KL-Cov: which tokens' probability and advantage rise together the most.

Their covariance drives the entropy of the policy down (Cui et al., 2025); both losses treat the
few tokens with the largest share of it in a special way. The choice is made here, on the device,
without waiting for it; the random draws are the same on every device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from r1kernels.policy import surrogates


def select(
    loss_type: str,
    options: dict[str, Any],
    logprob: Tensor,
    old_logprob: Tensor | None,
    advantage: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """[T] bool: the tokens chosen among the active ones; all tensors are [T].

    cov = (A − mean A)·(ℓ − mean ℓ), means over the active tokens of this call. "kl_cov" chooses the
    share kl_cov_ratio of the active tokens with the largest cov; "clip_cov" as many as
    clip_cov_ratio says, at random, among those that the ratio's clip leaves alone and whose cov is
    between clip_cov_lb and clip_cov_ub. Never fewer than one, where there is one.
    """
    active = torch.ones_like(logprob, dtype=torch.bool) if mask is None else mask
    logprob, advantage = logprob.detach().where(active, 0), advantage.where(active, 0)
    tokens = active.sum()
    cov = _centred(advantage, active, tokens) * _centred(logprob, active, tokens)
    if loss_type == "kl_cov":
        candidates, order_by, ratio = active, -cov, options["kl_cov_ratio"]
    else:
        old = logprob if old_logprob is None else old_logprob.where(active, 0)
        clip = [
            torch.full((), value, dtype=logprob.dtype, device=logprob.device)
            for value in (options["epsilon"], options["epsilon_high"], math.inf, math.inf)
        ]
        *_, clipped = surrogates.ppo(logprob, old, logprob - old, advantage, 0.0, *clip)
        within = (cov > options["clip_cov_lb"]) & (cov < options["clip_cov_ub"])
        candidates, ratio = active & within & (clipped == 0), options["clip_cov_ratio"]
        order_by = draws(logprob.shape[0], options["seed"], logprob.device).double()
    count = (tokens.double() * ratio).floor().clamp(min=1)
    order = order_by.where(candidates, math.inf).argsort(stable=True)
    rank = torch.arange(order.shape[0], device=order.device)
    return torch.zeros_like(active).scatter(0, order, rank < count) & candidates


def _centred(values: Tensor, active: Tensor, tokens: Tensor) -> Tensor:
    return values - values.sum() / tokens.clamp(min=1)


def draws(rows: int, seed: int, device: torch.device) -> Tensor:
    """A random number for each row, from its index and the seed alone: a hash, on any device."""
    x = (torch.arange(rows, device=device) + (seed * 0x9E3779B9)) & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
