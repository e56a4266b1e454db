"""Log-probabilities and entropies of given logits: one read of them; backward one read, one write.

A row belongs to one program, or from ``SEGMENT`` columns on to several, whose results a second,
tiny kernel combines in the order of the columns. How depends on V alone, never on T, so a row comes
out the same in every batch. All exponentials are to base 2, which is what the hardware has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1kernels.ops.logprob import LOGPROB, LOGPROB_BACKWARD
from r1kernels.triton import plug_in
from r1kernels.triton.build import Build
from r1kernels.triton.elementary import LN2, LOG2E, expm1, tanh

SEGMENT = 32768  # columns of a row that one program reads
DEPTH = 4  # elements that a lane has in flight
LOW = tl.constexpr(-1e30)  # stands for −inf where a difference must stay finite
UNLIKELY = tl.constexpr(-1e4)  # 2 to this power is 0, and 0 times it is not NaN


class Given(NamedTuple):
    """What both directions are given: tensors as pointers, None where they are absent."""

    logits: Any
    target: Any
    temperature: Any
    columns: Any
    row_stride: Any
    column_stride: Any
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


@triton.jit
def finish(s, row, rows, given, out):
    """Write the results of the rows ``row`` from their statistics."""
    here = row < rows
    y = tl.load(given.target + row, here, -1).to(tl.int64)
    at = row.to(tl.int64) * given.row_stride + y * given.column_stride
    # A target out of range gives NaN; raising here would wait for the device.
    own = tl.load(given.logits + at, here & (y >= 0) & (y < given.columns), float("nan"))
    z = scaled(own, per_temperature(LOG2E, given, row, here), given)
    log_total = tl.log2(s.total)
    tl.store(out.logprob + row, ((z - s.m) - log_total) * LN2, here)
    tl.store(out.lse + row, (s.m + log_total) * LN2, here)
    if out.entropy is not None:
        tl.store(out.entropy + row, (log_total - s.weighted / s.total) * LN2, here)


@triton.jit
def read(
    given, out, parts, rows, splits,
    SEGMENT: tl.constexpr, DEPTH: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Statistics of one segment of a row; where that is the whole row, its results."""
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
        z = scaled(tl.load(x + column * given.column_stride, here, float("-inf")), factor, given)
        if given.softcap is not None:
            z = tl.where(here, z, float("-inf"))
        top = tl.maximum(m, tl.max(z, 0, keep_dims=True))
        p = tl.exp2(z - top)
        share = tl.exp2(m - top)
        if out.entropy is not None:
            weighted = share * (weighted + (m - top) * total)
            weighted += tl.sum(p * tl.maximum(z - top, UNLIKELY), 0, keep_dims=True)
        total = share * total + tl.sum(p, 0, keep_dims=True)
        m = top
    s = row_statistics(Statistics(m, total, weighted))
    if parts is None:
        finish(s, row + tl.arange(0, 1), rows, given, out)
    else:
        at = parts + 3 * (tl.program_id(0).to(tl.int64) + tl.arange(0, 1))
        tl.store(at, s.m)
        tl.store(at + 1, s.total)
        tl.store(at + 2, s.weighted)


@triton.jit
def combine(given, out, parts, rows, splits, ROWS: tl.constexpr, SPLITS: tl.constexpr):
    """The results of ``ROWS`` rows from the statistics of their segments."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.arange(0, SPLITS)[None, :]
    at = parts + 3 * (row[:, None].to(tl.int64) * splits + split)
    here = (row[:, None] < rows) & (split < splits)
    m, total = tl.load(at, here, LOW), tl.load(at + 1, here, 0.0)
    s = row_statistics(Statistics(m, total, tl.load(at + 2, here, 0.0)))
    finish(s, row, rows, given, out)


@triton.jit
def gradient(
    given, saved, dlogprob, dentropy, dlogits, splits,
    SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dz = g·(1_y − p) − e·p·(log p + H) for one segment of a row, times the options' slope."""
    row = tl.program_id(0) // splits
    first = tl.program_id(0) % splits * SEGMENT
    g = tl.load(dlogprob + row)
    e = 0.0 if dentropy is None else tl.load(dentropy + row)
    h = 0.0 if dentropy is None else tl.load(saved.entropy + row) * LOG2E
    x = given.logits + row.to(tl.int64) * given.row_stride
    dx = dlogits + row.to(tl.int64) * given.columns
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
        own = tl.load(x + y * given.column_stride, (y >= 0) & (y < given.columns), float("nan"))
        own = -g * expm1((scaled(own, factor, given) - lse) * LN2)
        for start in range(first, last, BLOCK):
            column = start + tl.arange(0, BLOCK)
            here = column < given.columns
            z = scaled(tl.load(x + column * given.column_stride, here, 0.0), factor, given)
            p = tl.exp2(z - lse)
            dz = tl.where(column == y, own, -g * p)
            if dentropy is not None:
                dz -= (e * LN2) * p * (tl.maximum(z - lse, UNLIKELY) + h)
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
    temperature = None if temperature is None else temperature.contiguous()
    return Given(
        logits, target.contiguous(), temperature, logits.shape[1], *logits.stride(),
        logit_scale, softcap,
    )  # fmt: skip


@plug_in(LOGPROB)
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
    out = Results(value, entropy if want_entropy else None, lse)
    splits = triton.cdiv(columns, SEGMENT)
    parts = None if splits == 1 else value.new_empty(rows * splits, 3)
    lanes = min(max(triton.next_power_of_2(columns) // DEPTH, 32), 2048)
    read[(rows * splits,)](
        given, out, parts, rows, splits, SEGMENT, DEPTH, lanes, num_warps=max(lanes // 256, 1)
    )
    if parts is not None:
        grid = (triton.cdiv(rows, 32),)
        combine[grid](given, out, parts, rows, splits, 32, triton.next_power_of_2(splits))
    return value, entropy, lse


@plug_in(LOGPROB_BACKWARD)
def logprob_backward(
    dlogprob: Tensor,
    dentropy: Tensor,
    logits: Tensor,
    target: Tensor,
    lse: Tensor,
    entropy: Tensor,
    temperature: Tensor | None,
    logit_scale: float,
    softcap: float | None,
) -> Tensor:
    rows, columns = logits.shape
    dlogits = logits.new_empty(rows, columns)
    if rows == 0:
        return dlogits
    given = given_logits(logits, target, temperature, logit_scale, softcap)
    saved = Results(None, entropy.contiguous(), lse.contiguous())
    block = min(max(triton.next_power_of_2(columns), 32), 4096)
    splits = triton.cdiv(columns, 4 * block)
    gradient[(rows * splits,)](
        given, saved, dlogprob.contiguous(), dentropy.contiguous() if dentropy.numel() else None,
        dlogits, splits, 4 * block, block, num_warps=max(block // 512, 1),
    )  # fmt: skip
    return dlogits


def _builds(dtype: str, softcap: str | None, entropy: str | None) -> tuple[Build, Build]:
    temperature = "*fp32" if softcap else None
    signature = {
        "given": Given(f"*{dtype}", "*i64", temperature, "i32", "i32", 1, "fp32", softcap),
        "out": Results("*fp32", entropy, "*fp32"),
        "saved": Results(None, "*fp32", "*fp32"),
        "parts": "*fp32",
        "rows": "i32",
        "splits": "i32",
        "dlogprob": "*fp32",
        "dentropy": entropy,
        "dlogits": f"*{dtype}",
    }
    aligned = ("given.logits", "given.columns", "given.row_stride", "dlogits")
    wide = {arch: r"ld\.global\.v4.*(.|\n)*st\.global" for arch in (80, 89, 90, 100)}
    forward = {"SEGMENT": SEGMENT, "DEPTH": DEPTH, "LANES": 2048}
    backward = {"SEGMENT": 4 * 4096, "BLOCK": 4096}
    return (
        Build(read, signature, forward, {"num_warps": 8}, wide, aligned=aligned),
        Build(gradient, signature, backward, {"num_warps": 8}, wide, aligned=aligned),
    )


BUILDS = (
    *_builds("bf16", None, None),
    *_builds("bf16", "fp32", "*fp32"),
    *_builds("fp32", None, "*fp32"),
)
