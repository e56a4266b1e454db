"""Whole tasks, from inputs to gradients: checks, times and weighs every implementation of one.

Error is that of the results against the same task in a wider type: the largest row error over the
largest row, so that one wrong row shows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import inf, nan
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks import (
    distill_tasks,
    elementwise_tasks,
    fp8_tasks,
    moe_tasks,
    peers,
    tasks,
    train_ours,
    train_tasks,
)
from benchmarks.record import Row
from r1kernels.testing import peaks
from r1kernels.testing.memory import extra_peak
from r1kernels.testing.timing import PATIENCE, interleaved

OURS = {
    **tasks.OURS, **moe_tasks.OURS, **fp8_tasks.OURS, **elementwise_tasks.OURS,
    **distill_tasks.OURS, **train_ours.OURS,
}  # fmt: skip
NAME = {
    "grpo": "fused_linear_grpo_loss",
    "cross_entropy": "linear_cross_entropy",
    "reverse_kl": "linear_reverse_kl",
    "logits": "logprob + policy_loss",
    "logprob": "logprob, forward",
    "route": "moe_route, forward",
    "permute": "moe_permute + moe_combine",
    "experts": "moe_experts, layer",
    "linear": "fp8_linear, layer",
    "norm": "rms_norm with a residual",
    "rotate": "rope",
    "gate": "swiglu",
    "layers": "a model's forward and backward",
    "update": "GRPO update",
    "rollout": "greedy rollout",
}
WE = "r1kernels"
EXACT = 1e-6  # a few float32 roundings, where the yardstick happens to have no error at all
PEER_ERROR = 1e-2  # a peer need not be as exact as we, but must have done the same task
TIES = 2e-3  # of a text's tokens: what sums in another order may well decide otherwise
SECONDS = {"cpu": 2.0, "cuda": 0.5}  # of timing, for each implementation


class Task(Protocol):
    """``inputs``: what may have a gradient. ``upstream``: that of the result; None for a loss."""

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...
    @property
    def upstream(self) -> Tensor | None: ...


class Scenario(Protocol):
    """One task at one size: those of ``tasks``, ``moe_tasks`` and ``fp8_tasks``.

    peers: those that take part; None is all of them. yardstick: the one that says what is true, in
    a wider type, and how exact one must be.
    """

    name: str
    kind: str
    dtype: torch.dtype
    peers: tuple[str, ...] | None
    yardstick: str

    def make(self, device: str, dtype: torch.dtype | None = None) -> Any: ...
    def describe(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def flops(self) -> float: ...
    @property
    def bytes(self) -> float: ...
    @property
    def exact_dtype(self) -> torch.dtype: ...


class Measured(NamedTuple):
    """The rows of one scenario, and what is wrong with those that print no speed."""

    rows: list[Row]
    problems: list[str]


class Checked(NamedTuple):
    """Every implementation of one scenario, and what is right of them."""

    errors: dict[str, float]
    right: dict[str, Callable[[], Any]]
    problems: list[str]


def measure(
    scenario: Scenario, device: str, quick: bool, rounds: tuple[int, int], seconds: float
) -> Measured:
    """Check, time (``rounds`` and ``seconds`` of each) and weigh every implementation."""
    errors, right, problems = check(scenario, device)
    times = interleaved(
        right, device=device, warmup=1, rounds=(1, 1) if quick else rounds, seconds=seconds
    )
    best = min((times[name] for name in times if name != WE), default=None)
    rows = []
    for name, error in errors.items():
        time = times.get(name)
        ratio = time and best and time / best
        rows.append(make_row(scenario, device, name, time, ratio, error, weighed=not quick))
    return Measured(rows, problems)


def check(scenario: Scenario, device: str) -> Checked:
    """Run every implementation once, against the truth."""
    torch._dynamo.reset()  # it would stop compiling after eight shapes
    names = implementations(scenario, device)
    try:
        exact = step(scenario.yardstick, scenario, scenario.make(device, scenario.exact_dtype))()
    except Exception as error:  # no memory, most likely: it must not cost the other scenarios
        return Checked({}, {}, [f"{scenario.yardstick}: {type(error).__name__}: {error}"])
    task = made(scenario, device)
    calls = {name: step(name, scenario, task) for name in names}
    problems: list[str] = []
    errors = {name: judge(name, call, exact, problems) for name, call in calls.items()}
    floor = EXACT if exact[0].is_floating_point() else TIES
    allowed = max(2 * errors[scenario.yardstick], floor)
    right = {}
    for name, found in errors.items():
        limit = allowed if name == WE else max(allowed, PEER_ERROR)
        if found <= limit:
            right[name] = calls[name]
        elif found == found:
            problems.append(f"{name}: error {found:.2g}, allowed {limit:.2g}")
    return Checked(errors, right, problems)


def make_row(
    scenario: Scenario,
    device: str,
    name: str,
    time: float | None,
    ratio: float | None,
    error: float,
    weighed: bool,
) -> Row:
    """What an implementation did, and the memory that it needs where that is ``weighed``."""
    memory = None
    if time and time < PATIENCE and weighed:
        memory = extra_peak(build, name, scenario, device, device=device)
    least = peaks.roofline(device, scenario.dtype, scenario.flops, scenario.bytes)
    return Row(
        NAME[scenario.kind],
        scenario.name,
        name,
        seconds=time,
        tflops=time and scenario.flops / time / 1e12,
        gbps=time and scenario.bytes / time / 1e9,
        roofline=time and least / time,
        ratio=ratio,
        error=error,
        peak=memory and memory.peak,
        returned=memory and memory.returned,
        shape=scenario.shape,
    )


def implementations(scenario: Scenario, device: str) -> list[str]:
    able = peers.for_task(scenario.kind, device)
    wanted = able if scenario.peers is None else [name for name in scenario.peers if name in able]
    return [WE, *wanted]


def step(name: str, scenario: Scenario, task: Task) -> Callable[[], tuple[Tensor, ...]]:
    """A call that returns the result and the gradients of what is trained."""
    able = OURS if name == WE else peers.for_task(scenario.kind, task.inputs[0].device.type)
    run = able[scenario.kind if name == WE else name]
    if isinstance(task, train_tasks.Task):
        return run(task)  # has made it ready, which is not timed
    leaves = [tensor for tensor in task.inputs if tensor.requires_grad]

    def call() -> tuple[Tensor, ...]:
        result = run(task)
        if isinstance(result, tuple):  # it took its gradients itself
            return result
        gradients = torch.autograd.grad(result, leaves, task.upstream) if leaves else ()
        return (result.detach(), *gradients)

    return call


@lru_cache(maxsize=1)
def made(scenario: Scenario, device: str) -> Task:
    """The task, kept until the next one is made: it takes seconds."""
    return scenario.make(device)


def build(name: str, scenario: Scenario, device: str) -> Callable[[], tuple[Tensor, ...]]:
    """``step`` by names, for the process that measures memory."""
    torch._dynamo.reset()
    return step(name, scenario, made(scenario, device))


def judge(
    name: str,
    call: Callable[[], tuple[Tensor, ...]],
    exact: tuple[Tensor, ...],
    problems: list[str],
) -> float:
    try:
        return error(call(), exact)
    except Exception as problem:  # of a peer, most likely: it must not cost the whole table
        problems.append(f"{name}: {type(problem).__name__}: {problem}")
        return nan


def error(got: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """The worst of result and gradients, each relative to the largest row of the truth (1 if 0).

    Of texts, the share of ``differing`` tokens.
    """
    worst = 0.0
    for a, b in zip(got, exact, strict=True):
        if not b.is_floating_point():
            worst = max(worst, differing(a, b))
            continue
        rows = (a.to(b.dtype) - b).reshape(b.shape[0] if b.dim() else 1, -1).norm(dim=1)
        rows = rows.nan_to_num(nan=inf)
        scale = float(b.reshape(b.shape[0] if b.dim() else 1, -1).norm(dim=1).max()) or 1.0
        worst = max(worst, float(rows.max()) / scale)
    return worst


def differing(got: Tensor, exact: Tensor) -> float:
    """The share of the tokens [B, N] that differ, where all tokens of the text before them agree.

    One near tie decides otherwise, and every later token follows from it: only the first counts.
    """
    agree = (got == exact).int().cumprod(1).sum(1)  # [B] tokens
    ends = agree < exact.shape[1]
    return int(ends.sum()) / int((agree + ends).sum())


def title(scenario: Scenario, rows: list[Row]) -> str:
    returned = next((row.returned for row in rows if row.returned), None)
    results = f"; results: {returned / 2**20:.0f} MiB" if returned else ""
    return f"{NAME[scenario.kind]}, {scenario.describe()}{results}"
