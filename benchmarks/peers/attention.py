"""Packed attention by PyTorch's sdpa, which knows no packed sequences on the CPU: over padded rows
with a mask, or a segment at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.adapt import Peer

Attention = Callable[..., Tensor]


class Rows(NamedTuple):
    """Segments padded to one length, each with its prefix, padded too, before its keys."""

    queries: Tensor  # [B, L] places
    keys: Tensor  # [B, P + L] places
    mask: Tensor  # [B, 1, L, P + L] bool
    valid: Tensor  # [B, L] bool


@lru_cache(maxsize=1)  # a model makes it once for all of its layers
def padded_rows(cu_seqlens: Tensor, prefix: Tensor | None) -> list[Rows]:
    """Segments without a prefix, and then those that have one: the two passes of a trainer."""
    parts = list(pairwise(cu_seqlens.tolist()))
    before = [-1] * len(parts) if prefix is None else prefix.tolist()
    roots = [(part, (0, 0)) for part, p in zip(parts, before, strict=True) if p < 0]
    others = [(part, parts[p]) for part, p in zip(parts, before, strict=True) if p >= 0]
    return [_rows(*zip(*pairs, strict=True)) for pairs in (roots, others) if pairs]


def _rows(own: tuple[tuple[int, int], ...], before: tuple[tuple[int, int], ...]) -> Rows:
    queries, valid = _padded(own)
    first, of_first = _padded(before)
    causal = torch.ones(queries.shape[1], queries.shape[1], dtype=torch.bool).tril()
    shape = (-1, 1, queries.shape[1], -1)
    seen = of_first[:, None, None].expand(*shape), (causal & valid[:, None])[:, None].expand(*shape)
    return Rows(queries, torch.cat([first, queries], 1), torch.cat(seen, -1), valid)


def _padded(parts: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """Places and validity of ranges."""
    begin, end = torch.tensor(parts).unbind(1)
    places = begin[:, None] + torch.arange(int((end - begin).max()))
    return places.clamp(max=max(0, int(end.max()) - 1)), places < end[:, None]


def _heads(x: Tensor, places: Tensor) -> Tensor:
    """[B, H, L, D] of the places [B, L]."""
    return x.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


def padded(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, prefix: Tensor | None,
    scale: float,
) -> Tensor:  # fmt: skip
    """Keys repeated for every row and, as transformers does beside a mask, for every query head."""
    group = query.shape[1] // key.shape[1]
    places, rows = [], []
    for each in padded_rows(cu_seqlens, prefix):
        k, v = (_heads(x, each.keys).repeat_interleave(group, 1) for x in (key, value))
        out = F.scaled_dot_product_attention(
            _heads(query, each.queries), k, v, attn_mask=each.mask, scale=scale
        )
        rows.append(out.transpose(1, 2)[each.valid])
        places.append(each.queries[each.valid])
    return torch.cat(rows)[torch.cat(places).argsort()]


def looped(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, prefix: Tensor | None,
    scale: float,
) -> Tensor:  # fmt: skip
    parts = list(pairwise(cu_seqlens.tolist()))
    before = [-1] * len(parts) if prefix is None else prefix.tolist()
    results = []
    for (begin, end), first in zip(parts, before, strict=True):
        if begin == end:
            continue
        q, k, v = (x[begin:end].transpose(0, 1) for x in (query, key, value))
        mask = None
        if first >= 0:
            shared = slice(*parts[first])
            k, v = (
                torch.cat([x[shared].transpose(0, 1), own], 1) for x, own in ((key, k), (value, v))
            )
            mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(
                k.shape[1] - q.shape[1]
            )
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=first < 0, scale=scale, enable_gqa=True
        )
        results.append(out.transpose(0, 1))
    return torch.cat(results)


@lru_cache(maxsize=1)
def _graph(attention: Attention, *args: Tensor | float | None) -> tuple[Tensor, list[Tensor]]:
    """A result whose gradients can be taken again and again, and the leaves that these are of."""
    leaves = [x.detach().requires_grad_() for x in args[:3]]  # type: ignore[union-attr]
    with torch.enable_grad():
        return attention(*leaves, *args[3:]), leaves


def backward_of(attention: Attention) -> Callable[..., dict[str, Tensor]]:
    def run(
        dout: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
        cu_seqlens: Tensor, prefix: Tensor | None, scale: float,
    ) -> dict[str, Tensor]:  # fmt: skip
        result, leaves = _graph(attention, query, key, value, cu_seqlens, prefix, scale)
        gradients = torch.autograd.grad(result, leaves, dout, retain_graph=True)
        return dict(zip(("dquery", "dkey", "dvalue"), gradients, strict=True))

    return run


def _peer(name: str, attention: Attention) -> Peer:
    def run(**args: Tensor) -> dict[str, Tensor]:
        return {"out": attention(**args)}

    ops = {"packed_attention": run, "packed_attention_backward": backward_of(attention)}
    return Peer(name, ops=ops)


PEERS = (_peer("sdpa, padded", padded), _peer("sdpa, looped", looped))
