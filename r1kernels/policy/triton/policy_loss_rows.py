"""What policy_loss reads: blocks of tokens, and what the tokens of a sequence have in common."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from r1kernels.policy.policy_loss_reference import MAX_LOG_RATIO, MIN_LOG_SUM
from r1kernels.triton.elementary import maximum, minimum

LIMIT = tl.constexpr(MAX_LOG_RATIO)
LEAST = tl.constexpr(MIN_LOG_SUM)


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
def difference_of(a, b):
    """a − b, which is 0 of two −inf."""
    return tl.where(a == b, 0.0, a - b)


@triton.jit
def drift_of(a, b, sampled, active):
    """a − b, bounded; 0 where the sampler did not say. A NaN of anyone else stays."""
    inside, _ = bounded(difference_of(a, b))
    return tl.where(active & (sampled == sampled), inside, 0.0)


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
    log_ratio, slope = bounded(difference_of(logprob, old_logprob))
    cut = 0.0 * slope
    if LOG_RATIO is not None:
        log_ratio, inside = LOG_RATIO(log_ratio, by_token, *a.options)
        slope *= inside
        cut = tl.where(by_token != 0.0, 1.0 - inside, 0.0)
    return Row(active, logprob, old_logprob, by_token, log_ratio, slope, cut)


@triton.jit
def rollout_weight(a, drift):
    weight = tl.exp(drift)
    if a.rollout_correction == "token_mask" or a.rollout_correction == "sequence_mask":
        outside = (weight < a.rollout_clip_min) | (weight > a.rollout_clip_max)
        kept = tl.where(outside, 0.0, weight)
    else:
        kept = minimum(maximum(weight, a.rollout_clip_min), a.rollout_clip_max)
    return kept


@triton.jit
def read_sequence(a, start, stop, advantage, LOG_RATIO: tl.constexpr, BLOCK: tl.constexpr):
    """The first pass; one that nothing needs is not made."""
    of_sequence: tl.constexpr = (
        a.rollout_correction == "sequence_truncate" or a.rollout_correction == "sequence_mask"
    )
    whole: tl.constexpr = a.level == "sequence_sum"
    corrected: tl.constexpr = whole and a.rollout_correction is not None
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
            behaviour = read(a.sampling_logprob, i, row.active, row.old_logprob)
            sampled = read(a.sampling_logprob, i, row.active, 0.0)
            count += row.active.to(tl.int32)
            if a.level != "token":
                log_ratio += row.log_ratio
            if a.off_policy_mask_threshold is not None:
                away += drift_of(behaviour, row.logprob, sampled, row.active)
            if of_sequence or corrected:
                token = drift_of(row.old_logprob, behaviour, sampled, row.active)
                if corrected:
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
        x = x.to(tl.float32) / length
    if of_sequence:
        inside, _ = bounded(tl.sum(drift).to(tl.float32))
        rollout = rollout_weight(a, inside)
    return Sequence(length, x, rollout, tl.sum(away).to(tl.float32) / length)
