"""policy_loss in one launch: group advantages, loss, both gradients and every metric.

A program has one sequence. It passes over it once for what the loss needs of the whole sequence,
once for the terms, and once more where a gradient flows through the mean of the log ratios. Sums
run in float64, block by block; the last program to finish adds up what the others have written,
always in the same order. Where the caller wants the totals of a masked batch, PyTorch counts first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.policy.policy_loss import POLICY_LOSS
from r1kernels.policy.policy_loss_reference import METRICS, Arguments
from r1kernels.policy.triton.group_advantage import BLOCK as REWARDS
from r1kernels.policy.triton.group_advantage import Batch, advantages
from r1kernels.policy.triton.policy_loss_rows import (
    bounded,
    difference_of,
    drift_of,
    read_row,
    read_sequence,
    rollout_weight,
)
from r1kernels.policy.triton.surrogates import FUNCTIONS
from r1kernels.triton import next_power_of_2, plug_in
from r1kernels.triton.elementary import maximum
from r1kernels.triton.handles import launched

TENSORS = Arguments._fields.index("surrogate")  # the arguments before it

BLOCK = 512  # tokens of a sequence that its program handles together
WARPS = 8
SEQUENCES = 32  # whose parts the last program adds up together

# What a program writes and the last one combines: the metrics in their order, then the KL's part of
# the loss.
(
    POLICY, MEAN_KL, ENTROPY, CLIPPED, RATIO, RATIO_MAX, DRIFT, DRIFT_MAX, ROLLOUT, DROPPED, TOKENS,
    KL_TERM,
) = (tl.constexpr(index) for index in range(len(METRICS) + 1))  # fmt: skip
WIDTH = tl.constexpr(next_power_of_2(len(METRICS) + 1))


def _bits(names: Iterable[str]) -> tl.constexpr:
    return tl.constexpr(sum(1 << METRICS.index(name) for name in names))


MAXIMA = _bits(name for name in METRICS if name.endswith("_max"))
MEANS = _bits(set(METRICS) - {"policy_loss", "active_tokens", "ratio_max", "sampling_delta_max"})


@launched
@triton.jit(do_not_specialize=["rows", "sequences"])
def kernel(
    a, loss, grad, grad_entropy, metrics, parts, counter, count, rows, sequences,
    SURROGATE: tl.constexpr, LOG_RATIO: tl.constexpr, KL: tl.constexpr, BY_TOKEN: tl.constexpr,
    BLOCK: tl.constexpr, REWARDS: tl.constexpr, SEQUENCES: tl.constexpr,
):  # fmt: skip
    """A sequence: its gradients and its part of the sums; the last one to finish adds them up."""
    b = tl.program_id(0)
    start = tl.maximum(tl.load(a.cu_seqlens + b, b < sequences, 0).to(tl.int32), 0)
    stop = tl.minimum(tl.load(a.cu_seqlens + b + 1, b < sequences, 0).to(tl.int32), rows)
    if BY_TOKEN:
        advantage = None
    elif a.group_ids is not None:
        batch = Batch(a.advantages, a.group_ids, None, sequences)
        one = b + tl.arange(0, 1)
        advantage = advantages(one, batch, a.eps, a.scale, a.baseline, 1, REWARDS)
    else:
        advantage = tl.load(a.advantages + b, b < sequences, 0.0)
    s = read_sequence(a, start, stop, advantage, LOG_RATIO, BLOCK)

    # A token weighs 1/total in the loss, and 1/entropy_total in the entropy bonus.
    entropy_total = rows.to(tl.float32)
    if count is not None:
        entropy_total = tl.load(count).to(tl.float32)
    total = entropy_total
    if a.sequence_mean:
        total = sequences.to(tl.float32)
    if a.denominator is not None:
        total = tl.load(a.denominator)
    if a.sequence_mean:
        total *= s.length
    if a.num_active_tokens is not None:
        entropy_total = tl.load(a.num_active_tokens)

    active_sum = tl.zeros([BLOCK], tl.int32)
    policy_sum = tl.zeros([BLOCK], tl.float64)
    clip_sum = tl.zeros([BLOCK], tl.float64)
    ratio_sum = tl.zeros([BLOCK], tl.float64)
    ratio_max = tl.zeros([BLOCK], tl.float32)
    rollout_sum = tl.zeros([BLOCK], tl.float64)
    dropped_sum = tl.zeros([BLOCK], tl.int32)
    drift_sum = tl.zeros([BLOCK], tl.float64)
    drift_max = tl.zeros([BLOCK], tl.float32)
    kl_sum = tl.zeros([BLOCK], tl.float64)
    kl_term = tl.zeros([BLOCK], tl.float64)
    entropy_sum = tl.zeros([BLOCK], tl.float64)
    chain_sum = tl.zeros([BLOCK], tl.float64)
    for first in range(start, stop, BLOCK):
        i = first + tl.arange(0, BLOCK)
        row = read_row(a, i, stop, advantage, LOG_RATIO)
        m = row.active.to(tl.float32)
        w = tl.where(row.active, 1.0 / total, 0.0)
        x = row.log_ratio
        if a.level != "token":
            x = m * s.log_ratio
        ratio = tl.exp(row.log_ratio if a.level == "sequence_sum" else x)

        drift = 0.0 * m
        if a.sampling_logprob is not None:
            sampled = tl.load(a.sampling_logprob + i, row.active, 0.0)
            drift = drift_of(row.old_logprob, sampled, sampled, row.active)
            drift_sum += tl.abs(drift)
            drift_max = maximum(drift_max, tl.abs(drift))
        rollout = s.rollout
        if a.rollout_correction == "token_truncate" or a.rollout_correction == "token_mask":
            rollout = rollout_weight(a, drift)
        policy_weight = w
        if a.level != "sequence_sum":
            policy_weight = w * rollout
        rollout_sum += m * rollout
        if a.off_policy_mask_threshold is not None:
            far = m * s.away > a.off_policy_mask_threshold
            dropped = row.active & (row.advantage < 0.0) & far
            policy_weight = tl.where(dropped, 0.0, policy_weight)
            dropped_sum += dropped.to(tl.int32)
        selected = 0.0 * m
        if a.selected is not None:
            selected += tl.load(a.selected + i, row.active, 0)
        value, by_log_ratio, by_logprob, cut = SURROGATE(
            row.logprob, row.old_logprob, x, row.advantage, selected, *a.options
        )
        chain = policy_weight * by_log_ratio
        gradient = policy_weight * by_logprob

        if a.ref_logprob is not None:
            reference = tl.load(a.ref_logprob + i, row.active, 0.0)
            difference, inside = bounded(difference_of(reference, row.logprob))
            kl, slope = KL(difference)
            slope = slope * inside
            if a.use_bias_correction_kl:
                kl, slope = kl * ratio, slope * ratio
                chain += a.beta * w * kl
            gradient += a.beta * w * slope
            kl_sum += m * kl
            kl_term += w * kl
        if a.level == "sequence":
            chain_sum += chain
        else:
            gradient += chain * row.slope
        tl.store(grad + i, tl.where(row.active, gradient, 0.0), i < stop)
        if a.entropy is not None:
            entropy_sum += tl.load(a.entropy + i, row.active, 0.0)
            entropy_weight = tl.where(row.active, 1.0 / entropy_total, 0.0)
            tl.store(grad_entropy + i, -a.entropy_coef * entropy_weight, i < stop)

        active_sum += row.active.to(tl.int32)
        nothing = (policy_weight == 0.0) & (tl.abs(value) == float("inf"))
        policy_sum += tl.where(nothing, 0.0, policy_weight * value)
        clip_sum += m * (row.cut + cut)
        ratio_sum += m * ratio
        ratio_max = maximum(ratio_max, m * ratio)

    if a.level == "sequence":
        shared = tl.sum(chain_sum).to(tl.float32) / s.length
        tl.debug_barrier()  # the stores above may have been other threads'
        for first in range(start, stop, BLOCK):
            i = first + tl.arange(0, BLOCK)
            row = read_row(a, i, stop, advantage, LOG_RATIO)
            gradient = tl.load(grad + i, i < stop) + tl.where(row.active, shared * row.slope, 0.0)
            tl.store(grad + i, gradient, i < stop)

    part = put(0.0, POLICY, tl.sum(policy_sum))
    part = put(part, MEAN_KL, tl.sum(kl_sum))
    part = put(part, ENTROPY, tl.sum(entropy_sum))
    part = put(part, CLIPPED, tl.sum(clip_sum))
    part = put(part, RATIO, tl.sum(ratio_sum))
    part = put(part, RATIO_MAX, tl.reduce(ratio_max, 0, maximum))
    part = put(part, DRIFT, tl.sum(drift_sum))
    part = put(part, DRIFT_MAX, tl.reduce(drift_max, 0, maximum))
    part = put(part, ROLLOUT, tl.sum(rollout_sum))
    part = put(part, DROPPED, tl.sum(dropped_sum))
    part = put(part, TOKENS, tl.sum(active_sum))
    part = put(part, KL_TERM, tl.sum(kl_term))
    tl.store(parts + b * WIDTH + tl.arange(0, WIDTH), part)

    tl.debug_barrier()
    if tl.atomic_add(counter, 1) == tl.num_programs(0) - 1:
        tl.store(counter, 0)  # for the next launch
        combine(a, loss, metrics, parts, sequences, entropy_total, SEQUENCES)


@triton.jit
def put(part, at: tl.constexpr, value):
    return tl.where(tl.arange(0, WIDTH) == at, value.to(tl.float64), part)


@triton.jit
def take(part, at: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, WIDTH) == at, part, 0.0))


@triton.jit
def combine(a, loss, metrics, parts, sequences, entropy_total, SEQUENCES: tl.constexpr):
    """Add up what the programs have written, in the order of the sequences."""
    column = tl.arange(0, WIDTH)
    total = tl.zeros([SEQUENCES, WIDTH], tl.float64)
    largest = tl.zeros([SEQUENCES, WIDTH], tl.float64)
    for first in range(0, sequences, SEQUENCES):
        b = first + tl.arange(0, SEQUENCES)[:, None]
        at = parts + b * WIDTH + column[None, :]
        # From the second cache: the first may still hold what stood there before.
        part = tl.load(at, b < sequences, 0.0, cache_modifier=".cg")
        total += part
        largest = maximum(largest, part)
    value = tl.where((MAXIMA >> column) & 1 != 0, tl.reduce(largest, 0, maximum), tl.sum(total, 0))
    sum_of_loss = take(value, POLICY)
    if a.ref_logprob is not None:
        sum_of_loss += a.beta * take(value, KL_TERM)
    active = take(value, TOKENS)
    if a.entropy is not None:
        bonus = take(value, ENTROPY) * (a.entropy_coef / entropy_total)
        sum_of_loss -= tl.where(active > 0, bonus, 0.0)
    tl.store(loss, sum_of_loss.to(tl.float32))
    value = value.to(tl.float32)
    mean = value / tl.maximum(active, 1.0).to(tl.float32)
    tl.store(metrics + column, tl.where((MEANS >> column) & 1 != 0, mean, value), column < KL_TERM)


def arrivals(device: torch.device) -> Tensor:
    """How many programs of the launch in progress have finished: 0 before and after it."""
    if device.type != "cuda":
        return _kept_arrivals(device, 0)
    if torch.cuda.is_current_stream_capturing():  # the graph's own, zeroed at every replay
        return torch.zeros(1, dtype=torch.int32, device=device)
    return _kept_arrivals(device, torch.cuda.current_stream(device).cuda_stream)


@cache
def _kept_arrivals(device: torch.device, stream: int) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)


def given(a: Arguments) -> Arguments:
    """As the kernel takes them: contiguous, bytes for booleans, and compile-time words and None."""
    return Arguments(
        *[tensor if tensor is None else _in_bytes(tensor.contiguous()) for tensor in a[:TENSORS]],
        *_constants(tuple(a.options), *a[TENSORS + 2 :]),
    )


def _in_bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


@lru_cache(maxsize=64)
def _constants(options: tuple[float, ...], *rest: Any) -> tuple[Any, ...]:
    """What follows the tensors: the surrogate, which comes as a function, options, and the rest."""
    found = dict(zip(Arguments._fields[TENSORS + 2 :], rest, strict=True))
    found["kl_estimator"] = None  # a function, too
    if found["rollout_correction"] == "none":
        found["rollout_correction"] = None
    if found["off_policy_mask_threshold"] == math.inf:
        found["off_policy_mask_threshold"] = None
    words = (tl.constexpr(x) if isinstance(x, (str, bool)) else x for x in found.values())
    return None, options, *words


def functions(a: Arguments) -> dict[str, Any]:
    return {
        "SURROGATE": FUNCTIONS[a.surrogate],
        "LOG_RATIO": FUNCTIONS["gmpo_log_ratio"] if a.surrogate == "gmpo" else None,
        "KL": FUNCTIONS[a.kl_estimator] if a.ref_logprob is not None else None,
    }


@plug_in(POLICY_LOSS)
def policy_loss(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a = Arguments(*args)
    rows, sequences = a.logprob.shape[0], a.cu_seqlens.shape[0] - 1
    programs = max(sequences, 1)
    loss, grad = a.logprob.new_empty(()), a.logprob.new_empty(rows)
    grad_entropy = a.logprob.new_empty(0 if a.entropy is None else rows)
    metrics = a.logprob.new_empty(len(METRICS))
    parts = a.logprob.new_empty(programs, WIDTH.value, dtype=torch.float64)
    by_tokens = a.denominator is None and not a.sequence_mean
    counted = by_tokens or (a.entropy is not None and a.num_active_tokens is None)
    count = a.mask.sum() if a.mask is not None and counted else None
    kernel[(programs,)](
        given(a), loss, grad, grad_entropy, metrics, parts,
        arrivals(grad.device), count, rows, sequences, **functions(a),
        BY_TOKEN=a.advantages.shape[0] != sequences,
        BLOCK=BLOCK, REWARDS=REWARDS, SEQUENCES=SEQUENCES, num_warps=WARPS,
    )  # fmt: skip
    return loss, grad, grad_entropy, metrics
