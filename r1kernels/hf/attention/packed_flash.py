"""Packed attention on a GPU by two calls of PyTorch's flash attention, merged by log-sum-exp.

One call has every segment by itself, causal. The other has the queries of all segments of a prefix
as one sequence and the prefix as its keys. The backward pass calls both again, with the merged
result and log-sum-exp, and adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from r1kernels.hf.attention.packed import Packing

ALIGNED = 8  # elements that the kernels want a head to be a multiple of


class Sequences(NamedTuple):
    """Of a call: where queries and keys begin, and the longest of them."""

    queries: Tensor
    keys: Tensor
    longest_queries: int
    longest_keys: int
    causal: bool


def packed_flash(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float
) -> Tensor:
    """As ``packed_attention``, for bfloat16 and float16 on CUDA: query [T, Hq, D] → [T, Hq, Dv]."""
    width = -(-max(query.shape[2], value.shape[2]) // ALIGNED) * ALIGNED
    padded = [F.pad(x, (0, width - x.shape[2])).contiguous() for x in (query, key, value)]
    out: Tensor = _PackedFlash.apply(*padded, packing, scale)
    return out[..., : value.shape[2]]


def flash_forward(
    query: Tensor, key: Tensor, value: Tensor, of: Sequences, scale: float
) -> tuple[Tensor, Tensor]:
    """(out [T, Hq, D], log-sum-exp [Hq, T])."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query, key, value, of.queries, of.keys, of.longest_queries, of.longest_keys, 0.0, of.causal,
        False, scale=scale,
    )  # fmt: skip
    return out, lse


def flash_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
    of: Sequences, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rng_state = torch.empty(2, dtype=torch.uint64, device=query.device)  # of no dropout
    dquery, dkey, dvalue = torch.ops.aten._flash_attention_backward(
        grad.contiguous(), query, key, value, out.contiguous(), lse.contiguous(), of.queries,
        of.keys, of.longest_queries, of.longest_keys, 0.0, of.causal, rng_state,
        torch.empty(0, device=query.device), scale=scale,
    )  # fmt: skip
    return dquery, dkey, dvalue


def _calls(packing: Packing) -> tuple[Sequences, Sequences]:
    starts, longest = packing.cu_seqlens, packing.longest
    return (
        Sequences(starts, starts, longest, longest, True),
        Sequences(
            packing.group_queries, packing.group_keys, packing.longest_group,
            packing.longest_prefix, False,
        ),
    )  # fmt: skip


class _PackedFlash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float
    ) -> Tensor:
        own, of_prefix = _calls(packing)
        first = packing.first
        out, lse = flash_forward(query, key, value, own, scale)
        if packing.longest_group:
            other, other_lse = flash_forward(
                query[first:], key[:first], value[:first], of_prefix, scale
            )
            merged = torch.logaddexp(lse[:, first:], other_lse)
            shares = [(part - merged).exp().T.unsqueeze(-1) for part in (lse[:, first:], other_lse)]
            seen = out[first:] * shares[0] + other * shares[1]
            out = torch.cat([out[:first], seen.to(out.dtype)])
            lse = torch.cat([lse[:, :first], merged], 1)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.packing, ctx.scale = packing, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        own, of_prefix = _calls(ctx.packing)
        first = ctx.packing.first
        dquery, dkey, dvalue = flash_backward(grad, query, key, value, out, lse, own, ctx.scale)
        if ctx.packing.longest_group:
            more = flash_backward(
                grad[first:], query[first:], key[:first], value[:first], out[first:],
                lse[:, first:], of_prefix, ctx.scale,
            )  # fmt: skip
            dquery[first:] += more[0]
            dkey[:first] += more[1]
            dvalue[:first] += more[2]
        return dquery, dkey, dvalue, None, None
