"""Log-probabilities and entropies of given logits: one read of them; backward one read, one write.

A program has a segment of a row; a second, tiny kernel combines a row's segments, in their order.
How rows are cut depends on V alone, never on T, so a row comes out the same in every batch. All
exponentials are to base 2, which is what the hardware has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.head.logprob import LOGPROB, LOGPROB_BACKWARD, LOGPROB_BACKWARD_
from r1kernels.triton import cdiv, launch, next_power_of_2, plug_in
from r1kernels.triton.elementary import LN2, LOG2E, expm1, tanh
from r1kernels.triton.handles import launched

ROWS = 32  # whose segments one program combines
LOW = tl.constexpr(-1e30)  # stands for −inf where a difference must stay finite
UNLIKELY = tl.constexpr(-1e4)  # 2 to this power is 0, and 0 times it is not NaN


class Given(NamedTuple):
    """What both directions are given: tensors as pointers, None where they are absent."""

    logits: Any
    target: Any
    temperature: Any
    columns: Any
    row_stride: Any
    logit_scale: Any
    softcap: Any


class Statistics(NamedTuple):
    """Of some logits z, to base 2, with m their maximum."""

    m: Any
    total: Any  # Σ 2^(z − m)
    weighted: Any  # Σ 2^(z − m)·(z − m)


class Results(NamedTuple):
    logprob: Any
    entropy: Any
    lse: Any


@triton.jit
def scaled(x, factor, given):
    """Logits as given → logits of the distribution, times temperature·factor."""
    x = x.to(tl.float32)
    if given.softcap is None:
        z = x * (given.logit_scale * factor)
    else:
        z = tanh(x * (given.logit_scale / given.softcap)) * (given.softcap * factor)
    return z


@triton.jit
def per_temperature(x, given, row, here):
    return x if given.temperature is None else x / tl.load(given.temperature + row, here, 1.0)


@triton.jit
def row_statistics(s):
    """The lanes' [rows, lanes] statistics as each row's, [rows]."""
    m = tl.max(s.m, 1)
    shift = s.m - m[:, None]
    share = tl.exp2(shift)
    weighted = tl.sum(share * (s.weighted + shift * s.total), 1)
    return Statistics(m, tl.sum(share * s.total, 1), weighted)


@launched
@triton.jit
def read(
    given, parts, splits,
    ENTROPY: tl.constexpr, SEGMENT: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The statistics of one segment of a row."""
    row = tl.program_id(0) // splits
    first = tl.program_id(0) % splits * SEGMENT
    factor = per_temperature(LOG2E, given, row, True)
    x = given.logits + row.to(tl.int64) * given.row_stride
    tile = tl.arange(0, DEPTH)[:, None] * LANES + tl.arange(0, LANES)[None, :]

    # Each lane keeps statistics of its own: within the loop no thread waits for another.
    m = tl.full([1, LANES], LOW, tl.float32)
    total = tl.zeros([1, LANES], tl.float32)
    weighted = tl.zeros([1, LANES], tl.float32)
    for start in range(first, min(first + SEGMENT, given.columns), DEPTH * LANES):
        column = start + tile
        here = column < given.columns
        z = scaled(tl.load(x + column, here, float("-inf")), factor, given)
        if given.softcap is not None:
            z = tl.where(here, z, float("-inf"))
        largest = tl.maximum(m, tl.max(z, 0, keep_dims=True))
        z -= largest
        p = tl.exp2(z)
        share = tl.exp2(m - largest)
        if ENTROPY:
            weighted = share * (weighted + (m - largest) * total)
            weighted += tl.sum(p * tl.maximum(z, UNLIKELY), 0, keep_dims=True)
        total = share * total + tl.sum(p, 0, keep_dims=True)
        m = largest
    s = row_statistics(Statistics(m, total, weighted))
    at = parts + 3 * tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    tl.store(at, s.m)
    tl.store(at + 1, s.total)
    tl.store(at + 2, s.weighted)


@launched
@triton.jit(do_not_specialize=["rows"])
def combine(given, out, parts, rows, splits, ROWS: tl.constexpr, SPLITS: tl.constexpr):
    """The results of ``ROWS`` rows from the statistics of their segments."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.arange(0, SPLITS)[None, :]
    at = parts + 3 * (row[:, None].to(tl.int64) * splits + split)
    here = (row[:, None] < rows) & (split < splits)
    m, total = tl.load(at, here, LOW), tl.load(at + 1, here, 0.0)
    s = row_statistics(Statistics(m, total, tl.load(at + 2, here, 0.0)))

    here = row < rows
    y = tl.load(given.target + row, here, -1).to(tl.int64)
    at = row.to(tl.int64) * given.row_stride + y
    # A target out of range gives NaN; raising here would wait for the device.
    own = tl.load(given.logits + at, here & (y >= 0) & (y < given.columns), float("nan"))
    z = scaled(own, per_temperature(LOG2E, given, row, here), given)
    log_total = tl.log2(s.total)
    tl.store(out.logprob + row, ((z - s.m) - log_total) * LN2, here)
    tl.store(out.lse + row, (s.m + log_total) * LN2, here)
    if out.entropy is not None:
        tl.store(out.entropy + row, (log_total - s.weighted / s.total) * LN2, here)


@launched
@triton.jit
def gradient(
    given, saved, dlogprob, dentropy, dlogits, out_stride, splits,
    SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dz = g·(1_y − p) − e·p·(log p + H) for one segment of a row, times the options' slope.

    ``dlogits`` may be the logits: each thread writes what it alone has read.
    """
    row = tl.program_id(0) // splits
    first = tl.program_id(0) % splits * SEGMENT
    g = tl.load(dlogprob + row)
    e = 0.0 if dentropy is None else tl.load(dentropy + row)
    h = 0.0 if dentropy is None else tl.load(saved.entropy + row) * LOG2E
    x = given.logits + row.to(tl.int64) * given.row_stride
    dx = dlogits + row.to(tl.int64) * out_stride
    last = min(first + SEGMENT, given.columns)
    if (g == 0) & (e == 0):  # whatever the logits are
        for start in range(first, last, BLOCK):
            column = start + tl.arange(0, BLOCK)
            tl.store(dx + column, tl.zeros([BLOCK], dx.dtype.element_ty), column < given.columns)
    else:
        y = tl.load(given.target + row).to(tl.int64)
        factor = per_temperature(LOG2E, given, row, True)
        slope = per_temperature(given.logit_scale, given, row, True)
        lse = tl.load(saved.lse + row) * LOG2E
        own = tl.load(x + y, (y >= 0) & (y < given.columns), float("nan"))
        own = -g * expm1((scaled(own, factor, given) - lse) * LN2)
        tl.debug_barrier()  # every thread has read it before one may write it
        for start in range(first, last, BLOCK):
            column = start + tl.arange(0, BLOCK)
            here = column < given.columns
            z = scaled(tl.load(x + column, here, 0.0), factor, given)
            logp = z - lse
            p = tl.exp2(logp)
            dz = tl.where(column == y, own, -g * p)
            if dentropy is not None:
                dz -= (e * LN2) * p * (tl.maximum(logp, UNLIKELY) + h)
            dz *= slope
            if given.softcap is not None:
                bent = z / (given.softcap * factor)
                dz *= 1.0 - bent * bent
            tl.store(dx + column, dz, here)


def given_logits(
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> Given:
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    temperature = None if temperature is None else temperature.contiguous()
    return Given(
        logits, target.contiguous(), temperature, logits.shape[1], logits.stride(0),
        logit_scale, softcap,
    )  # fmt: skip


def tabled(logits: Tensor, *_: Any) -> bool | str:
    return launch.absent("logprob.read", logits.device) or True


@plug_in(LOGPROB, tabled)
def logprob(
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    want_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = logits.shape
    value = logits.new_empty(rows, dtype=torch.float32)
    lse = torch.empty_like(value)
    entropy = value.new_empty(rows if want_entropy else 0)
    if rows == 0:
        return value, entropy, lse
    given = given_logits(logits, target, temperature, logit_scale, softcap)
    tile = launch.parameters("logprob.read", logits.device, logits.dtype)
    # Narrow rows take fewer threads.
    lanes = min(max(next_power_of_2(columns) // tile["DEPTH"], 32), tile["LANES"])
    warps = max(tile["num_warps"] * lanes // tile["LANES"], 1)
    splits = cdiv(columns, tile["SEGMENT"])
    parts = value.new_empty(rows * splits, 3)
    read[(rows * splits,)](
        given, parts, splits, want_entropy, **(tile | {"LANES": lanes, "num_warps": warps})
    )
    out = Results(value, entropy if want_entropy else None, lse)
    combine[(cdiv(rows, ROWS),)](given, out, parts, rows, splits, ROWS, next_power_of_2(splits))
    return value, entropy, lse


def write_gradient(
    dlogits: Tensor,
    dlogprob: Tensor,
    dentropy: Tensor,
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    entropy: Tensor,
    *options: Any,
) -> None:
    rows, columns = logits.shape
    if rows == 0:
        return
    given = given_logits(logits, target, *options)
    saved = Results(None, entropy.contiguous(), lse.contiguous())
    tile = launch.parameters("logprob.gradient", logits.device, logits.dtype)
    block = min(max(next_power_of_2(columns), 32), tile["BLOCK"])
    warps = max(tile["num_warps"] * block // tile["BLOCK"], 1)
    splits = cdiv(columns, tile["SEGMENT"])
    gradient[(rows * splits,)](
        given, saved, dlogprob.contiguous(), dentropy.contiguous() if dentropy.numel() else None,
        dlogits, dlogits.stride(0), splits, **(tile | {"BLOCK": block, "num_warps": warps}),
    )  # fmt: skip


@plug_in(LOGPROB_BACKWARD, lambda dlogprob, dentropy, logits, *_: tabled(logits))
def logprob_backward(dlogprob: Tensor, dentropy: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    dlogits = logits.new_empty(logits.shape)
    write_gradient(dlogits, dlogprob, dentropy, logits, *rest)
    return dlogits


def rows_in_place(dlogprob: Tensor, dentropy: Tensor, logits: Tensor, *rest: Any) -> bool | str:
    if logits.stride(1) != 1 or logits.stride(0) < logits.shape[1]:
        return f"takes rows that are contiguous and apart, got strides {tuple(logits.stride())}"
    return tabled(logits)


@plug_in(LOGPROB_BACKWARD_, when=rows_in_place)
def logprob_backward_(dlogprob: Tensor, dentropy: Tensor, logits: Tensor, *rest: Any) -> None:
    write_gradient(logits, dlogprob, dentropy, logits, *rest)
