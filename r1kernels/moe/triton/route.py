"""Routing in one launch, then the two of moe_sort; its gradient in another.

A warp has a row of logits in registers. It chooses by k rounds of the largest key, then weighs the
chosen few. Rows never wait for each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.moe.route import (
    MOE_ROUTE,
    MOE_ROUTE_BACKWARD,
    VARIANTS,
    Variant,
    best_of_group,
)
from r1kernels.moe.route_reference import EPS, normalises
from r1kernels.moe.triton.route_choice import choose, in_best_groups, lowest, ordered
from r1kernels.moe.triton.route_scores import score_of, sigmoid, softmax
from r1kernels.moe.triton.sort import moe_sort
from r1kernels.triton import cdiv, next_power_of_2, plug_in
from r1kernels.triton.build import Build
from r1kernels.triton.handles import launched

EPS = tl.constexpr(EPS)
TILE = 256  # logits that a warp has, of as many rows as that makes
MOST = 1024  # of a single row


class Logits(NamedTuple):
    """T rows of them, as both directions are given them."""

    z: Any
    tokens: Any
    stride: Any


class Choices(NamedTuple):
    """Of some rows, each [ROWS, CHOICES]."""

    z: Any
    there: Any
    s: Any  # scores, 0 where there is none


@triton.jit
def read_rows(logits, row, column, there):
    return tl.load(logits.z + row * logits.stride + column, there & (row < logits.tokens), 0.0)


@triton.jit
def known(ids, EXPERTS: tl.constexpr):
    """Ids as they come from outside; EXPERTS stands for none."""
    return tl.where((ids >= 0) & (ids < EXPERTS), ids, EXPERTS).to(tl.int32)


@triton.jit
def read_choices(
    logits, row, ids, z, there,
    EXPERTS: tl.constexpr, SCORE: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """The logits and scores of ``ids``, out of rows whose logits are z (where they are there)."""
    named = ids < EXPERTS
    chosen = read_rows(logits, row, ids, named).to(tl.float64)
    if SCORE != "softmax":
        s = score_of(chosen, None, SCORE)
    elif ORDER == "topk_first":
        s = score_of(chosen, softmax(chosen, named), SCORE)
    else:
        s = score_of(chosen, softmax(z.to(tl.float64), there), SCORE)
    return Choices(chosen, named, tl.where(named, s, 0.0))


@triton.jit
def keys(z, bias, column, there, SCORE: tl.constexpr, ORDER: tl.constexpr, GROUPS: tl.constexpr):
    """What the choice is made by: logits wherever a score is only a monotone function of them."""
    key = z.to(tl.float32)
    if bias is not None:
        key = key.to(tl.float64)
    if ORDER == "score_first" and (bias is not None or (GROUPS > 1 and SCORE != "softmax")):
        key = z.to(tl.float64)
        key = score_of(key, softmax(key, there) if SCORE == "softmax" else None, SCORE)
    if bias is not None:
        key += tl.load(bias + column, there, 0.0).to(tl.float64)
    return ordered(key)


@launched
@triton.jit(do_not_specialize=["tokens"])
def route(
    weights, ids, logits, bias, replay_ids, num_valid, tokens, stride, scale, top_k, top_k_groups,
    EXPERTS: tl.constexpr, NUM_GROUPS: tl.constexpr, SCORE: tl.constexpr, ORDER: tl.constexpr,
    NORMALIZE: tl.constexpr, BEST: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
    WIDTH: tl.constexpr, CHOICES: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    slot = tl.arange(0, CHOICES)[None, :]
    lane = tl.arange(0, WIDTH)[None, :]
    SIZE: tl.constexpr = WIDTH // GROUPS
    PADDING: tl.constexpr = SIZE - EXPERTS // NUM_GROUPS  # of every group, and groups of padding
    column = lane - lane // SIZE * PADDING
    there = (lane % SIZE < SIZE - PADDING) & (column < EXPERTS)
    logits = Logits(logits, tokens, stride)
    z = read_rows(logits, row, column, there)
    here = (row < tokens) & (slot < top_k)
    if replay_ids is None:
        key = keys(z, bias, column, there, SCORE, ORDER, NUM_GROUPS)
        key = tl.where(there, key, lowest(key.dtype))
        if NUM_GROUPS > 1:
            key = in_best_groups(key, top_k_groups, BEST, GROUPS)
        chosen = choose(key, top_k, CHOICES)
        chosen -= chosen // SIZE * PADDING
    else:
        chosen = known(tl.load(replay_ids + row * top_k + slot, here, EXPERTS), EXPERTS)
    if num_valid is not None:
        chosen = tl.where(row < tl.load(num_valid), chosen, EXPERTS)
    chosen = tl.where(here, chosen, EXPERTS)
    tl.store(ids + row * top_k + slot, chosen.to(tl.int64), here)

    s = read_choices(logits, row, chosen, z, there, EXPERTS, SCORE, ORDER).s
    if NORMALIZE:
        s /= tl.sum(s, 1, keep_dims=True) + EPS
    tl.store(weights + row * top_k + slot, (s * scale).to(tl.float32), here)


@launched
@triton.jit(do_not_specialize=["tokens"])
def gradient(
    dlogits, grad, logits, ids, tokens, stride, scale, top_k,
    EXPERTS: tl.constexpr, SCORE: tl.constexpr, ORDER: tl.constexpr, NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, CHOICES: tl.constexpr,
):  # fmt: skip
    """Of the weights through their sum, then of the scores; 0 for all others but in a softmax."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    slot = tl.arange(0, CHOICES)[None, :]
    column = tl.arange(0, WIDTH)[None, :]
    there = column < EXPERTS
    logits = Logits(logits, tokens, stride)
    z = read_rows(logits, row, column, there)
    here = (row < tokens) & (slot < top_k)
    chosen = known(tl.load(ids + row * top_k + slot, here, EXPERTS), EXPERTS)
    c = read_choices(logits, row, chosen, z, there, EXPERTS, SCORE, ORDER)
    s = c.s
    ds = tl.load(grad + row * top_k + slot, here & c.there, 0.0).to(tl.float64) * scale
    if NORMALIZE:
        total = tl.sum(s, 1, keep_dims=True) + EPS
        ds = tl.where(c.there, (ds - tl.sum(ds * s, 1, keep_dims=True) / total) / total, 0.0)
    shared = tl.sum(ds * s, 1, keep_dims=True)
    if SCORE == "sigmoid":
        d = ds * s * (1.0 - s)
    elif SCORE == "sqrtsoftplus":
        d = tl.where(s > 0, ds * sigmoid(c.z) / (2.0 * s), 0.0)
    elif ORDER == "topk_first":
        d = s * (ds - shared)
    else:
        d = ds
    dz = tl.zeros([ROWS, WIDTH], tl.float64)
    for j in range(top_k):
        expert = tl.sum(tl.where(slot == j, chosen, 0), 1, keep_dims=True)
        of_expert = tl.sum(tl.where(slot == j, d, 0.0), 1, keep_dims=True)
        dz += tl.where(column == expert, of_expert, 0.0)
    if SCORE == "softmax" and ORDER == "score_first":
        z = z.to(tl.float64)
        dz = score_of(z, softmax(z, there), SCORE) * (dz - shared)
    # Through float32: what Triton makes of float64 to bfloat16 at once is not the same everywhere.
    tl.store(dlogits + row * EXPERTS + column, dz.to(tl.float32), there & (row < tokens))


def tile(width: int, top_k: int) -> dict[str, int]:
    """Of a program: rows in a single warp, up to 1024 wide, so that nothing waits at a barrier."""
    return {
        "ROWS": max(TILE // width, 1),
        "WIDTH": width,
        "CHOICES": next_power_of_2(top_k),
        "num_warps": max(width // MOST, 1),
    }


def padded_groups(experts: int, num_groups: int) -> tuple[int, int]:
    """(groups, width of a row) of the tile in which every group takes a power of two."""
    groups = next_power_of_2(num_groups)
    return groups, groups * next_power_of_2(experts // num_groups)


@plug_in(MOE_ROUTE)
def moe_route(
    logits: Tensor,
    top_k: int,
    score: str,
    order: str,
    bias: Tensor | None,
    num_groups: int,
    top_k_groups: int,
    normalize: bool,
    scale: float,
    replay_ids: Tensor | None,
    num_valid: Tensor | None,
    align: int,
) -> tuple[Tensor, ...]:
    tokens, experts = logits.shape
    weights = logits.new_empty(tokens, top_k, dtype=torch.float32)
    ids = logits.new_empty(tokens, top_k, dtype=torch.int64)
    if tokens > 0:
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        groups, width = padded_groups(experts, num_groups)
        chosen = tile(width, top_k)
        route[(cdiv(tokens, chosen["ROWS"]),)](
            weights, ids, logits,
            None if bias is None else bias.contiguous(),
            None if replay_ids is None else replay_ids.contiguous(),
            num_valid, tokens, logits.stride(0), scale, top_k, top_k_groups,
            experts, num_groups, score, order, normalises(score, order, normalize),
            best_of_group(score, order), GROUPS=groups, **chosen,
        )  # fmt: skip
    if align == 0:
        none = [ids.new_empty(0, dtype=torch.int32) for _ in range(4)]
        return weights, ids, *none
    return weights, ids, *moe_sort(ids, experts, align)


@plug_in(MOE_ROUTE_BACKWARD)
def moe_route_backward(
    grad: Tensor, logits: Tensor, ids: Tensor, score: str, order: str, normalize: bool, scale: float
) -> Tensor:
    tokens, experts = logits.shape
    dlogits = logits.new_empty(logits.shape)
    if tokens > 0:
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        top_k = ids.shape[1]
        chosen = tile(next_power_of_2(experts), top_k)
        gradient[(cdiv(tokens, chosen["ROWS"]),)](
            dlogits, grad.contiguous(), logits, ids.contiguous(), tokens, logits.stride(0), scale,
            top_k, experts, score, order, normalises(score, order, normalize), **chosen,
        )  # fmt: skip
    return dlogits


def _builds(
    variant: Variant, experts: int, top_k: int, dtype: str, replay: bool
) -> tuple[Build, ...]:
    num_groups = variant.groups[0]
    signature = {
        "weights": "*fp32", "ids": "*i64", "logits": f"*{dtype}", "dlogits": f"*{dtype}",
        "grad": "*fp32", "bias": "*fp32" if variant.biased else None,
        "replay_ids": "*i64" if replay else None, "num_valid": "*i64" if replay else None,
        "tokens": "i32", "stride": "i32", "scale": "fp32", "top_k": "i32", "top_k_groups": "i32",
    }  # fmt: skip
    score, order = variant.score, variant.order
    common = {
        "EXPERTS": experts, "SCORE": score, "ORDER": order,
        "NORMALIZE": normalises(score, order, variant.normalize),
    }  # fmt: skip
    groups, width = padded_groups(experts, num_groups)
    forward = common | tile(width, top_k)
    forward |= {"NUM_GROUPS": num_groups, "GROUPS": groups, "BEST": best_of_group(score, order)}
    backward = common | tile(next_power_of_2(experts), top_k)
    return tuple(
        Build(
            kernel, signature, constants, {"num_warps": constants.pop("num_warps")},
            aligned=("logits", "dlogits", "stride"),
        )
        for kernel, constants in ((route, forward), (gradient, backward))
    )  # fmt: skip


BUILDS = (
    *_builds(VARIANTS["DeepSeek-V3"], 256, 8, "fp32", False),
    *_builds(VARIANTS["DeepSeek-V3"], 1000, 16, "bf16", False),
    *_builds(VARIANTS["DeepSeek-V4"], 384, 6, "fp32", False),
    *_builds(VARIANTS["Qwen3-MoE"], 128, 8, "bf16", True),
    *_builds(VARIANTS["GPT-OSS"], 32, 4, "bf16", False),
)
