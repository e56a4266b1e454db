"""Attention of packed sequences, each causal over itself and open to a prefix that others share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels.core import autocast, check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    prefix: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale · query·keyᵀ)·value, of each query over the keys that it may see.

    Segment s is tokens cu_seqlens[s] to cu_seqlens[s + 1]. A query sees the keys of its own segment
    up to its own token, and before them all keys of segment prefix[s], if that is not −1: those of
    a prompt, which all completions of it share. No padding and no mask; softmax and sums are in
    float32. What a segment gives depends on it and its prefix alone, bit for bit.

    Args:
        query: [T, Hq, D], float32, bfloat16, float16 or float64, of any strides.
        key: [T, Hkv, D], dtype of query; Hkv divides Hq, and query head h goes with key head
            h // (Hq / Hkv).
        value: [T, Hkv, Dv], dtype of query; Dv may differ from D (latent attention).
        cu_seqlens: [S + 1] int32, from 0 to T, never falling.
        prefix: [S] int32, −1 or a segment which has no prefix itself; None for none at all.
        scale: of scores; 1/√D by default.

    Returns:
        [T, Hq, Dv], dtype of query; under ``torch.autocast`` query, key and value are cast first.
        Gradients flow to these; that of a prefix is the sum over the segments that see it, in an
        order that depends on the lengths alone. The backward pass keeps them, the result and one
        float32 for each query.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    query, key, value = autocast.cast(query, key, value)
    _check(query, key, value, cu_seqlens, prefix, scale)
    scale = query.shape[2] ** -0.5 if scale is None else scale
    out, _ = PACKED_ATTENTION(query, key, value, cu_seqlens, prefix, scale)
    return out


@remembered
def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    prefix: Tensor | None,
    scale: float | None,
) -> None:
    shapes = check.Shapes("packed_attention")
    shapes("query", query, "T Hq D", check.FLOATS)
    shapes("key", key, "T Hkv D", (query.dtype,))
    shapes("value", value, "T Hkv Dv", (query.dtype,))
    if query.shape[2] == 0 or key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ValueError(
            "packed_attention: key: expected D above 0 and Hkv that divides Hq = "
            f"{query.shape[1]} in shape [T, Hkv, D], got {list(key.shape)} (Hq is that of query)"
        )
    shapes("cu_seqlens", cu_seqlens, "S+1", (torch.int32,))
    if prefix is not None:
        shapes.sizes["S"], shapes.bound_by["S"] = cu_seqlens.shape[0] - 1, "cu_seqlens"
        shapes("prefix", prefix, "S", (torch.int32,))
    if scale is not None:
        check.number("packed_attention", "scale", scale)


BLOCK = 128  # queries whose scores the reference holds at one time


class Block(NamedTuple):
    """Some of the queries, and the keys that they see."""

    rows: slice
    mask: Tensor  # [queries, T] bool


def blocks(tokens: int, cu_seqlens: Tensor, prefix: Tensor | None) -> Iterator[Block]:
    places = torch.arange(tokens, device=cu_seqlens.device)
    ends = cu_seqlens[1:].contiguous()
    segment = torch.searchsorted(ends, places, right=True, out_int32=True)
    before = torch.full_like(segment, -1) if prefix is None else prefix[segment]
    for start in range(0, tokens, BLOCK):
        rows = slice(start, start + BLOCK)
        own = (segment[rows, None] == segment) & (places[rows, None] >= places)
        yield Block(rows, own | (before[rows, None] == segment))


def _wide(tensor: Tensor) -> Tensor:
    """In the dtype of sums: float32, or float64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _grouped(heads: Tensor, key_heads: int) -> Tensor:
    """[T, Hq, D] as [Hkv, Hq / Hkv, T, D], in the dtype of sums; keys as [Hkv, 1, T, D]."""
    return _wide(heads).unflatten(1, (key_heads, -1)).permute(1, 2, 0, 3)


def _ungrouped(heads: Tensor) -> Tensor:
    return heads.permute(2, 0, 1, 3).flatten(1, 2)


def _product(weights: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """weights·rows, where hidden rows do not count: their weight is 0, but 0·NaN is NaN."""
    spoilt = mask.to(rows.dtype) @ (~rows.isfinite()).to(rows.dtype) > 0
    return (weights @ rows.nan_to_num(0, 0, 0)).masked_fill(spoilt, torch.nan)


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    prefix: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    key_heads = key.shape[1]
    q, k, v = (_grouped(t, key_heads) for t in (query, key, value))
    out = query.new_empty(*query.shape[:2], value.shape[2])
    lse = q.new_empty(query.shape[1], query.shape[0])
    for rows, mask in blocks(query.shape[0], cu_seqlens, prefix):
        scores = (q[:, :, rows] @ k.mT * scale).masked_fill(~mask, -torch.inf)
        lse[:, rows] = scores.logsumexp(-1).flatten(0, 1)
        out[rows] = _ungrouped(_product(scores.softmax(-1), v, mask)).to(out.dtype)
    return out, lse


def _fake(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    return (
        query.new_empty(*query.shape[:2], value.shape[2]),
        query.new_empty(query.shape[1], query.shape[0], dtype=wide),
    )


def _validate(op: str, cu_seqlens: Tensor, prefix: Tensor | None, tokens: int) -> None:
    check.cumulative(op, "cu_seqlens", cu_seqlens, tokens, of="query")
    if prefix is None or not prefix.numel():
        return
    check.in_range(op, "prefix", prefix, len(prefix), ignore=-1)
    before = prefix.tolist()
    for segment, first in enumerate(before):
        if first >= 0 and before[first] >= 0:
            raise ValueError(
                f"{op}: prefix[{segment}]: expected a segment that has no prefix itself, got "
                f"{first}, which has {before[first]}"
            )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, cu_seqlens, prefix, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, *output, cu_seqlens, prefix)


def _backward(ctx: Any, dout: Tensor, _: Any) -> tuple[Any, ...]:
    gradients = PACKED_ATTENTION_BACKWARD(dout, *ctx.saved_tensors, ctx.scale)
    return *gradients, None, None, None


def backward_reference(
    dout: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    prefix: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """With weights p = e^(score − lse): dvalue = pᵀ·dout, dp = dout·valueᵀ, and the slope of scores
    is p·(dp − Σ dout·out), which dquery and dkey are products with."""
    key_heads = key.shape[1]
    q, k, v, slope, result = (_grouped(t, key_heads) for t in (query, key, value, dout, out))
    of_lse = lse.unflatten(0, (key_heads, -1)).unsqueeze(-1)
    delta = (slope * result).sum(-1, keepdim=True)
    dquery, dkey, dvalue = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows, mask in blocks(query.shape[0], cu_seqlens, prefix):
        weights = (q[:, :, rows] @ k.mT * scale - of_lse[:, :, rows]).exp()
        of_scores = weights * (slope[:, :, rows] @ v.mT - delta[:, :, rows]) * scale
        weights, of_scores = (t.masked_fill(~mask, 0) for t in (weights, of_scores))
        dquery[:, :, rows] = _product(of_scores, k, mask)
        dkey += _product(of_scores.mT, q[:, :, rows], mask.mT).sum(1, keepdim=True)
        dvalue += _product(weights.mT, slope[:, :, rows], mask.mT).sum(1, keepdim=True)
    return (
        _ungrouped(dquery).to(query.dtype),
        _ungrouped(dkey).to(key.dtype),
        _ungrouped(dvalue).to(value.dtype),
    )


def _backward_fake(
    dout: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(t.new_empty(t.shape) for t in (query, key, value))  # type: ignore[return-value]


class Group(NamedTuple):
    """Lengths of a prompt and of its completions."""

    prompt: int
    completions: Sequence[int]


def packing(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """cu_seqlens and prefix of all prompts, and then of all completions, group by group."""
    lengths = [group.prompt for group in groups]
    before = [-1] * len(groups)
    for prompt, group in enumerate(groups):
        lengths += group.completions
        before += [prompt] * len(group.completions)
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return starts, torch.tensor(before, dtype=torch.int32)


def _scores(cu_seqlens: Tensor, prefix: Tensor | None) -> int:
    """Pairs of a query and a key that it sees."""
    lengths = cu_seqlens.diff().long()
    own = int((lengths * (lengths + 1) // 2).sum())
    if prefix is None:
        return own
    return own + int((lengths * lengths[prefix.clamp(min=0)])[prefix >= 0].sum())


def _case(
    name: str, groups: Sequence[Group], heads: tuple[int, int], width: int, value_width: int = 0,
    dtype: torch.dtype = torch.bfloat16, *, prefixes: bool = True, scale: float | None = None,
    bench: bool | str = False,
) -> Case:  # fmt: skip
    value_width = value_width or width
    cu_seqlens, prefix = packing(groups)
    tokens = int(cu_seqlens[-1])

    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(tokens + width)
        query, key, value = (
            torch.randn(tokens, *shape, generator=rng).to(device, dtype)
            for shape in ((heads[0], width), (heads[1], width), (heads[1], value_width))
        )
        before = prefix.to(device) if prefixes else None
        return query, key, value, cu_seqlens.to(device), before, scale or width**-0.5

    pairs = heads[0] * _scores(cu_seqlens, prefix if prefixes else None)
    moved = tokens * (heads[0] + heads[1]) * (width + value_width) * dtype.itemsize
    flops = 2.0 * pairs * (width + value_width)
    return Case(name, make, flops=flops, bytes=float(moved), bench=bench)


def _drawn(prompts: int, of_prompt: tuple[int, int], count: int, most: int) -> list[Group]:
    """Prompts and completions of lengths as they come: least and most, and from 1 to ``most``."""
    rng = torch.Generator().manual_seed(most)

    def lengths(low: int, high: int, number: int) -> list[int]:
        drawn: list[int] = torch.randint(low, high + 1, (number,), generator=rng).tolist()
        return drawn

    return [Group(n, lengths(1, most, count)) for n in lengths(*of_prompt, prompts)]


SMALL = (Group(9, (7, 1, 20)), Group(18, (5, 33)))
ODD = (Group(0, (3, 0, 51)), Group(1, ()), Group(61, (1, 0, 2)))
FEW = _drawn(6, (8, 24), 16, 32)
MANY = _drawn(16, (8, 24), 16, 64)
MIDDLE = [Group(48, [48] * 8)] * 2
LONG = [Group(512, [512] * 8)]
FP32 = torch.float32
CASES = (
    _case("bf16", SMALL, (4, 4), 32),
    _case("fp32", SMALL, (4, 4), 32, dtype=FP32),
    _case("fp32, shared heads", SMALL, (6, 2), 32, dtype=FP32),
    _case("bf16, shared heads", SMALL, (9, 3), 64),
    _case("fp32, wide values", SMALL, (4, 4), 32, 48, FP32),
    _case("bf16, latent", SMALL, (2, 2), 192, 128),
    _case("bf16, odd widths", ODD, (5, 1), 37, 23),
    _case("fp32, odd widths", ODD, (5, 1), 37, 23, FP32),
    _case("bf16, empty segments", ODD, (3, 1), 16),
    _case("fp32, more heads than lanes", SMALL, (50, 1), 8, dtype=FP32),
    _case("bf16, more heads than lanes", SMALL, (50, 1), 8),
    _case("fp32, many blocks of keys", [Group(150, (70, 130))], (2, 1), 24, dtype=FP32),
    _case("bf16, many blocks of keys", [Group(151, (70, 131))], (2, 1), 24),
    _case("bf16, many completions", [Group(21, [40] * 15)], (2, 2), 16),
    _case("no prefixes", SMALL, (4, 2), 40, prefixes=False),
    _case("a scale", SMALL, (2, 2), 32, scale=-0.7),
    _case("fp16", SMALL, (2, 1), 16, dtype=torch.float16),
    _case("one token", (Group(1, ()),), (2, 1), 16),
    _case("no tokens", (Group(0, (0,)),), (2, 1), 16),
    _case("no segments", (), (2, 1), 16),
    *(
        _case(f"{name}, {str(dtype)[6:]}", groups, heads, width, value_width, dtype, bench="cpu")
        for name, groups, heads, width, value_width in (
            ("6 × 16 completions of 32, 4 heads of 32", FEW, (4, 4), 32, 32),
            ("16 × 16 completions of 64, 4 heads of 32", MANY, (4, 4), 32, 32),
            ("6 × 16 completions of 32, latent, 4 heads", FEW, (4, 4), 48, 32),
            ("2 × 8 completions of 48, 6 and 2 heads of 32", MIDDLE, (6, 2), 32, 32),
            ("2 × 8 completions of 48, 9 and 3 heads of 64", MIDDLE, (9, 3), 64, 64),
            ("8 completions of 512 after 512, 9 and 3 heads of 64", LONG, (9, 3), 64, 64),
        )
        for dtype in (FP32, torch.bfloat16)
    ),
)  # fmt: skip


def _backward_case(case: Case) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        query, key, value, *packed = case.make(device)
        out, lse = reference(query, key, value, *packed)
        rng = torch.Generator().manual_seed(1)
        dout = torch.randn(out.shape, generator=rng).to(out)
        return dout, query, key, value, out, lse, *packed

    return Case(case.name, make, flops=2.5 * case.flops, bytes=2 * case.bytes, bench=case.bench)


PACKED_ATTENTION = Op(
    "packed_attention(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, Tensor? prefix, "
    "float scale) -> (Tensor out, Tensor lse)",
    reference=reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    validate=lambda query, _key, _value, cu_seqlens, prefix, _scale: _validate(
        "packed_attention", cu_seqlens, prefix, query.shape[0]
    ),
    cases=CASES,
)
PACKED_ATTENTION_BACKWARD = Op(
    "packed_attention_backward(Tensor dout, Tensor query, Tensor key, Tensor value, Tensor out, "
    "Tensor lse, Tensor cu_seqlens, Tensor? prefix, float scale) "
    "-> (Tensor dquery, Tensor dkey, Tensor dvalue)",
    reference=backward_reference,
    fake=_backward_fake,
    validate=lambda dout, _query, _key, _value, _out, _lse, cu_seqlens, prefix, _scale: _validate(
        "packed_attention_backward", cu_seqlens, prefix, dout.shape[0]
    ),
    cases=tuple(_backward_case(case) for case in CASES),
)
