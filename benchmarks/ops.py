"""Every op × case × implementation against its peers.

Speed is the median of interleaved runs, checks and dispatch included. A row whose result is wrong
prints no speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch

from benchmarks import peers, status
from benchmarks.record import Row
from benchmarks.table import show
from r1kernels.__main__ import unavailable
from r1kernels.core.op import OPS, PREFERENCE, Case, Op
from r1kernels.testing import peaks
from r1kernels.testing.compare import Parity, Truth
from r1kernels.testing.memory import extra_peak
from r1kernels.testing.timing import interleaved

PEER_ERROR = 1e-2  # relative: a peer need not be as exact, but must have done the same task


def bench(op: Op, device: str, quick: bool) -> Iterator[list[Row]]:
    """Measure every case of ``op`` that is made for timing, print a table each, give its rows."""
    for case in op.cases:
        if case.timed_on(device):
            try:
                rows, problems = bench_case(op, case, device, quick)
            except Exception as error:  # no memory, most likely: it must not cost the other cases
                rows, problems = [], [f"{type(error).__name__}: {error}"]
            show(f"{op.name}, {case.name}", rows, problems)
            yield rows


def bench_case(op: Op, case: Case, device: str, quick: bool) -> tuple[list[Row], list[str]]:
    """The rows of one case, and what is wrong with those that print no speed."""
    torch._dynamo.reset()
    args = made(op.name, case.name, device)
    names = implementations(op, device, args)
    calls = {name: candidate(op, name, args, device) for name in names}
    truth = Truth(op, case, args)
    verdicts = {name: judge(truth, name, call) for name, call in calls.items()}
    del truth
    right = {name: call for name, call in calls.items() if not verdicts[name].problems}
    seconds = interleaved(right, device=device, seconds=0.05 if quick else 1.0)
    best = min((seconds[name] for name in seconds if name not in op.implementations), default=None)
    least = peaks.roofline(device, compute_dtype(args), case.flops, case.bytes)
    rows = []
    for name in names:
        time, memory = seconds.get(name), None
        if time is not None and not quick:
            memory = extra_peak(build, op.name, case.name, name, device, device=device)
        row = Row(
            op.name,
            case.name,
            name,
            seconds=time,
            tflops=time and case.flops / time / 1e12,
            gbps=time and case.bytes / time / 1e9,
            roofline=time and least / time,
            ratio=time and best and time / best,
            error=verdicts[name].error,
            peak=memory and memory.peak,
            returned=memory and memory.returned,
            source=status.source_hash(op, name),
        )
        rows.append(row)
    return rows, [verdict.problems[0] for verdict in verdicts.values() if verdict.problems]


def implementations(op: Op, device: str, args: tuple[Any, ...]) -> list[str]:
    """Ours that take these arguments, each variant by itself, then the peers."""
    ours = [
        name
        for backend in PREFERENCE[device]
        for name in op.named(backend)
        if unavailable(op, name) is None and op.implementations[name].able(*args) is True
    ]
    return [*ours, *peers.for_op(op, device)]


@torch.no_grad()
def call_ours(op: Op, name: str, args: tuple[Any, ...]) -> Any:
    with op.only(name):
        return op(*args)


def candidate(op: Op, implementation: str, args: tuple[Any, ...], device: str) -> Callable[[], Any]:
    if implementation in op.implementations:
        return partial(call_ours, op, implementation, args)
    return partial(torch.no_grad()(peers.for_op(op, device)[implementation]), *args)


@lru_cache(maxsize=1)
def made(op: str, case: str, device: str) -> tuple[Any, ...]:
    """The arguments of a case, kept until the next ones are made: it takes seconds."""
    return next(c for c in OPS[op].cases if c.name == case).make(device)


def build(op: str, case: str, implementation: str, device: str) -> Callable[[], Any]:
    """``candidate`` by names, for the process that measures memory."""
    return candidate(OPS[op], implementation, made(op, case, device), device)


def judge(truth: Truth, name: str, call: Callable[[], Any]) -> Parity:
    try:
        parity = truth.check(name, call())
    except Exception as error:  # of a peer, most likely: one failure must not cost the whole table
        return Parity(float("nan"), (f"{name}: {type(error).__name__}: {error}",))
    accepted = name not in truth.op.implementations and parity.error <= PEER_ERROR
    return Parity(parity.error, ()) if accepted else parity


def compute_dtype(args: tuple[Any, ...]) -> torch.dtype:
    """The narrowest floating-point type among the arguments: that of the matrix products."""
    floats = [a.dtype for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
    return min(floats, key=lambda dtype: dtype.itemsize, default=torch.float32)
