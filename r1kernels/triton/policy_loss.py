"""policy_loss in one launch: group advantages, loss, both gradients and every metric.

A program has one sequence. It passes over it once for what the loss needs of the whole sequence,
once for the terms, and once more where a gradient flows through the mean of the log ratios. Sums
run in float64, block by block; the last program to finish adds up what the others have written,
always in the same order. Where the caller wants the totals of a masked batch, PyTorch counts first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.ops.losses import LOSSES, PARAMETERS
from r1kernels.ops.policy_loss import POLICY_LOSS
from r1kernels.ops.policy_loss_reference import MAX_LOG_RATIO, METRICS, MIN_LOG_SUM, Arguments
from r1kernels.triton import plug_in
from r1kernels.triton.build import Build
from r1kernels.triton.elementary import maximum, minimum
from r1kernels.triton.group_advantage import BLOCK as REWARDS
from r1kernels.triton.group_advantage import Batch, advantages
from r1kernels.triton.surrogates import FUNCTIONS

BLOCK = 512  # tokens of a sequence that its program handles together
LIMIT = tl.constexpr(MAX_LOG_RATIO)
LEAST = tl.constexpr(MIN_LOG_SUM)

# What a program writes and the last one combines: the metrics, then the KL's part of the loss.
WIDTH = tl.constexpr(triton.next_power_of_2(len(METRICS) + 1))
KL_TERM = tl.constexpr(len(METRICS))
TOKENS = tl.constexpr(METRICS.index("active_tokens"))
ENTROPY = tl.constexpr(METRICS.index("entropy"))


def _bits(names: Iterable[str]) -> tl.constexpr:
    return tl.constexpr(sum(1 << METRICS.index(name) for name in names))


MAXIMA = _bits(name for name in METRICS if name.endswith("_max"))
MEANS = _bits(set(METRICS) - {"policy_loss", "active_tokens", "ratio_max", "sampling_delta_max"})


class Row(NamedTuple):
    """A block of tokens; zero where inactive, whatever the tensors hold there."""

    active: Any
    logprob: Any
    old_logprob: Any
    advantage: Any
    log_ratio: Any  # of the token, bounded
    slope: Any  # its derivative
    cut: Any  # 1 where the surrogate's own bound has cut it


class Sequence(NamedTuple):
    """What the tokens of a sequence have in common."""

    length: Any  # active tokens, at least 1
    log_ratio: Any  # mean or sum, by level
    rollout: Any  # its weight, where rollout_correction is of the sequence
    away: Any  # mean of the differences that off_policy_mask_threshold bounds


@triton.jit
def bounded(x):
    """x within ±20 and its derivative; NaN stays NaN."""
    inside = minimum(maximum(x, -LIMIT), LIMIT)
    return inside, tl.where(inside == x, 1.0, 0.0)


@triton.jit
def known(difference, active):
    """A difference from the sampler, bounded; 0 where the sampler did not say."""
    inside, _ = bounded(difference)
    return tl.where(active & (difference == difference), inside, 0.0)


@triton.jit
def read(pointer, i, active, default):
    value = default
    if pointer is not None:
        value = tl.load(pointer + i, active, 0.0)
    return value


@triton.jit
def read_row(a, i, stop, advantage, LOG_RATIO: tl.constexpr):
    active = i < stop
    if a.mask is not None:
        active = active & (tl.load(a.mask + i, active, 0) != 0)
    logprob = tl.load(a.logprob + i, active, 0.0)
    old_logprob = read(a.old_logprob, i, active, logprob)
    if advantage is None:
        by_token = tl.load(a.advantages + i, active, 0.0)
    else:
        by_token = tl.where(active, advantage, 0.0)
    log_ratio, slope = bounded(logprob - old_logprob)
    cut = 0.0 * slope
    if LOG_RATIO is not None:
        log_ratio, inside = LOG_RATIO(log_ratio, by_token, *a.options)
        slope *= inside
        cut = tl.where(by_token != 0.0, 1.0 - inside, 0.0)
    return Row(active, logprob, old_logprob, by_token, log_ratio, slope, cut)


@triton.jit
def rollout_weight(a, drift):
    weight = tl.exp(drift)
    inside = minimum(maximum(weight, a.rollout_clip_min), a.rollout_clip_max)
    if a.rollout_correction == "token_mask" or a.rollout_correction == "sequence_mask":
        inside = tl.where(weight == inside, inside, 0.0)
    return inside


@triton.jit
def read_sequence(a, start, stop, advantage, LOG_RATIO: tl.constexpr, BLOCK: tl.constexpr):
    """The first pass; one that nothing needs is not made."""
    of_sequence: tl.constexpr = (
        a.rollout_correction == "sequence_truncate" or a.rollout_correction == "sequence_mask"
    )
    whole: tl.constexpr = a.level == "sequence_sum"
    needed: tl.constexpr = (
        a.level != "token" or of_sequence or a.off_policy_mask_threshold is not None
        or (a.sequence_mean and a.mask is not None)
    )  # fmt: skip
    count = tl.zeros([BLOCK], tl.int32)
    log_ratio = tl.zeros([BLOCK], tl.float64)
    drift = tl.zeros([BLOCK], tl.float64)
    away = tl.zeros([BLOCK], tl.float64)
    length = (stop - start).to(tl.float32)
    if needed:
        for first in range(start, stop, BLOCK):
            i = first + tl.arange(0, BLOCK)
            row = read_row(a, i, stop, advantage, LOG_RATIO)
            sampled = read(a.sampling_logprob, i, row.active, row.old_logprob)
            count += row.active.to(tl.int32)
            if a.level != "token":
                log_ratio += row.log_ratio
            if a.off_policy_mask_threshold is not None:
                away += known(sampled - row.logprob, row.active)
            if of_sequence or whole:
                token = known(row.old_logprob - sampled, row.active)
                if whole and a.rollout_correction is not None:
                    token = maximum(tl.log(rollout_weight(a, token)), LEAST)
                    token = tl.where(row.active, token, 0.0)
                drift += token
        length = tl.sum(count).to(tl.float32)
    length = tl.maximum(length, 1.0)
    x = tl.sum(log_ratio)
    rollout = 1.0
    if whole:
        x = minimum(maximum(x.to(tl.float32) + tl.sum(drift).to(tl.float32), LEAST), LIMIT)
    else:
        x = (x / length).to(tl.float32)
    if of_sequence:
        inside, _ = bounded(tl.sum(drift).to(tl.float32))
        rollout = rollout_weight(a, inside)
    return Sequence(length, x, rollout, (tl.sum(away) / length).to(tl.float32))


@triton.jit
def kernel(
    a, loss, grad, grad_entropy, metrics, parts, counter, count, rows, sequences,
    SURROGATE: tl.constexpr, LOG_RATIO: tl.constexpr, KL: tl.constexpr, BY_TOKEN: tl.constexpr,
    BLOCK: tl.constexpr, REWARDS: tl.constexpr, SEQUENCES: tl.constexpr,
):  # fmt: skip
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

    tokens = rows.to(tl.float32)
    if count is not None:
        tokens = tl.load(count).to(tl.float32)
    total = tokens
    if a.sequence_mean:
        total = sequences.to(tl.float32)
    if a.denominator is not None:
        total = tl.load(a.denominator)
    if a.sequence_mean:
        total *= s.length
    if a.num_active_tokens is not None:
        tokens = tl.load(a.num_active_tokens)

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
            drift = known(row.old_logprob - sampled, row.active)
            drift_sum += tl.abs(drift)
            drift_max = tl.maximum(drift_max, tl.abs(drift))
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
            difference, inside = bounded(tl.load(a.ref_logprob + i, row.active, 0.0) - row.logprob)
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
        tl.store(grad + i, gradient, i < stop)
        if a.entropy is not None:
            entropy_sum += tl.load(a.entropy + i, row.active, 0.0)
            tl.store(
                grad_entropy + i, tl.where(row.active, -a.entropy_coef / tokens, 0.0), i < stop
            )

        active_sum += row.active.to(tl.int32)
        policy_sum += policy_weight * value
        clip_sum += m * (row.cut + cut)
        ratio_sum += m * ratio
        ratio_max = tl.maximum(ratio_max, m * ratio)

    if a.level == "sequence":
        shared = (tl.sum(chain_sum) / s.length).to(tl.float32)
        tl.debug_barrier()  # the stores above may have been other threads'
        for first in range(start, stop, BLOCK):
            i = first + tl.arange(0, BLOCK)
            row = read_row(a, i, stop, advantage, LOG_RATIO)
            gradient = tl.load(grad + i, i < stop) + tl.where(row.active, shared * row.slope, 0.0)
            tl.store(grad + i, gradient, i < stop)

    # In the order of METRICS.
    part = put(0.0, 0, tl.sum(policy_sum))
    part = put(part, 1, tl.sum(kl_sum))
    part = put(part, 2, tl.sum(entropy_sum))
    part = put(part, 3, tl.sum(clip_sum))
    part = put(part, 4, tl.sum(ratio_sum))
    part = put(part, 5, tl.max(ratio_max))
    part = put(part, 6, tl.sum(drift_sum))
    part = put(part, 7, tl.max(drift_max))
    part = put(part, 8, tl.sum(rollout_sum))
    part = put(part, 9, tl.sum(dropped_sum))
    part = put(part, 10, tl.sum(active_sum))
    part = put(part, KL_TERM, tl.sum(kl_term))
    tl.store(parts + b * WIDTH + tl.arange(0, WIDTH), part)

    tl.debug_barrier()
    if tl.atomic_add(counter, 1) == tl.num_programs(0) - 1:
        tl.store(counter, 0)  # for the next launch
        combine(a, loss, metrics, parts, sequences, tokens, SEQUENCES)


@triton.jit
def put(part, at: tl.constexpr, value):
    return tl.where(tl.arange(0, WIDTH) == at, value.to(tl.float64), part)


@triton.jit
def take(part, at: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, WIDTH) == at, part, 0.0))


@triton.jit
def combine(a, loss, metrics, parts, sequences, tokens, SEQUENCES: tl.constexpr):
    """Add up what the programs have written, in the order of the sequences."""
    column = tl.arange(0, WIDTH)
    total = tl.zeros([SEQUENCES, WIDTH], tl.float64)
    top = tl.zeros([SEQUENCES, WIDTH], tl.float64)
    for first in range(0, sequences, SEQUENCES):
        b = first + tl.arange(0, SEQUENCES)[:, None]
        at = parts + b * WIDTH + column[None, :]
        # From the second cache: the first may still hold what stood there before.
        part = tl.load(at, b < sequences, 0.0, cache_modifier=".cg")
        total += part
        top = tl.maximum(top, part)
    value = tl.where((MAXIMA >> column) & 1 != 0, tl.max(top, 0), tl.sum(total, 0))
    sum_of_loss = take(value, 0)
    if a.ref_logprob is not None:
        sum_of_loss += a.beta * take(value, KL_TERM)
    active = take(value, TOKENS)
    if a.entropy is not None:
        bonus = a.entropy_coef * take(value, ENTROPY) / tokens
        sum_of_loss -= tl.where(active > 0, bonus, 0.0)
    mean = value / tl.maximum(active, 1.0)
    tl.store(loss, sum_of_loss.to(tl.float32))
    value = tl.where((MEANS >> column) & 1 != 0, mean, value).to(tl.float32)
    tl.store(metrics + column, value, column < KL_TERM)


@cache
def arrivals(device: torch.device, stream: int) -> Tensor:
    """How many programs of the launch in progress have finished; every launch leaves 0."""
    return torch.zeros(1, dtype=torch.int32, device=device)


def current_stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def given(arguments: Arguments) -> Arguments:
    """As the kernel takes them: contiguous, bytes for booleans, and compile-time words and None."""

    def convert(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            value = value.contiguous()
            return value.view(torch.uint8) if value.dtype == torch.bool else value
        if isinstance(value, list):
            return tuple(value)
        if isinstance(value, (str, bool)):
            return tl.constexpr(value)
        return value

    a = Arguments(*(convert(name, value) for name, value in arguments._asdict().items()))
    correction = arguments.rollout_correction
    threshold = arguments.off_policy_mask_threshold
    return a._replace(
        surrogate=None,
        kl_estimator=None,
        rollout_correction=None if correction == "none" else tl.constexpr(correction),
        off_policy_mask_threshold=None if threshold == math.inf else threshold,
    )


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
    device = a.logprob.device
    kernel[(programs,)](
        given(a), loss, grad, grad_entropy, metrics, parts,
        arrivals(device, current_stream(device)), count, rows, sequences, **functions(a),
        BY_TOKEN=a.advantages.shape[0] != sequences, BLOCK=BLOCK, REWARDS=REWARDS, SEQUENCES=32,
    )  # fmt: skip
    return loss, grad, grad_entropy, metrics


def _build(
    loss_type: str, *, bare: bool = False, grouped: bool = False, rollout: str | None = None
) -> Build:
    loss = LOSSES[loss_type]
    words = {
        "level": loss.levels[0],
        "sequence_mean": loss.average == "sequence_means",
        "use_bias_correction_kl": not bare,
        "scale": "group",
        "baseline": "mean",
    }
    types = dict.fromkeys(Arguments._fields, "*fp32") | {
        "cu_seqlens": "*i32",
        "group_ids": "*i64" if grouped else None,
        "mask": "*u8",
        "selected": "*u8" if loss_type.endswith("_cov") else None,
        "options": ("fp32",) * len(PARAMETERS[loss.surrogate]),
        "off_policy_mask_threshold": None if bare else "fp32",
        "surrogate": None,
        "kl_estimator": None,
        "rollout_correction": rollout and tl.constexpr(rollout),
    }  # fmt: skip
    numbers = ("beta", "entropy_coef", "rollout_clip_min", "rollout_clip_max", "eps")
    types |= dict.fromkeys(numbers, "fp32")
    types |= {name: tl.constexpr(word) for name, word in words.items()}
    if bare:
        optional = ("ref_logprob", "sampling_logprob", "entropy", "denominator")
        types |= dict.fromkeys((*optional, "num_active_tokens"), None)
    signature = {
        "a": Arguments(**types),
        **dict.fromkeys(("loss", "grad", "grad_entropy", "metrics"), "*fp32"),
        "parts": "*fp64",
        "counter": "*i32",
        "count": "*i64" if bare else None,
        "rows": "i32",
        "sequences": "i32",
    }
    chosen = {
        "SURROGATE": FUNCTIONS[loss.surrogate],
        "LOG_RATIO": FUNCTIONS["gmpo_log_ratio"] if loss_type == "gmpo" else None,
        "KL": None if bare else FUNCTIONS["k3"],
        "BY_TOKEN": False,
        "BLOCK": BLOCK,
        "REWARDS": REWARDS,
        "SEQUENCES": 32,
    }
    return Build(kernel, signature, chosen)


BUILDS = (
    _build("grpo", grouped=True, rollout="sequence_truncate"),
    _build("gmpo", rollout="token_mask"),
    _build("vespo", bare=True),
    _build("dppo_kl", bare=True),
)
