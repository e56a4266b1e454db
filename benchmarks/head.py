"""The headline: whole tasks, from hidden states or logits to gradients, against all peers.

Error is that of the results against the same task in a wider type: the largest row error over the
largest row, so that one wrong row shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import inf, nan
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.record import Row
from benchmarks.table import show
from benchmarks.tasks import OURS, Scenario, Task
from r1kernels.testing import peaks
from r1kernels.testing.memory import extra_peak
from r1kernels.testing.timing import interleaved

NAME = {
    "grpo": "fused_linear_grpo_loss",
    "cross_entropy": "linear_cross_entropy",
    "logits": "logprob + policy_loss",
    "logprob": "logprob, forward",
}
WE = "r1kernels"
PEER_ERROR = 1e-2  # a peer need not be as exact as we, but must have done the same task
FEW = ("compile", "eager", "cce")  # the fastest peers on a CPU, and the measure of exactness
SECONDS = {"cpu": 2.0, "cuda": 0.5}  # of timing, for each implementation

SMALL, LARGE = (1024, 576, 49152), (8192, 4096, 151936)
SCENARIOS = {
    "cpu": (
        Scenario("all active", *SMALL),
        Scenario("37 % active", *SMALL, active=0.37),
        Scenario("frozen head", *SMALL, frozen=True),
        Scenario("odd vocabulary", 1024, 576, 49153, peers=FEW),
        Scenario("few rows", 256, 2048, 32000, peers=FEW),
        Scenario("large vocabulary", 512, 896, 151937, peers=FEW),
        Scenario("many rows", 2048, 1024, 32003, peers=FEW),
        Scenario("float32", *SMALL, dtype=torch.float32, peers=FEW),
    ),
    "cuda": (
        Scenario("all active", *LARGE),
        Scenario("frozen head", *LARGE, frozen=True),
        Scenario("37 % active", *LARGE, active=0.37),
        Scenario("logits given, forward", 8192, 0, 151936, kind="logprob"),
        Scenario("logits given", 8192, 0, 151936, kind="logits"),
        Scenario("cross-entropy", 4096, 4096, 128256, kind="cross_entropy"),
        Scenario("half the rows", 4096, 4096, 128256),
        Scenario("vocabulary 2^17", 8192, 4096, 131072),
    ),
}


class Measured(NamedTuple):
    """The rows of one scenario, and what is wrong with those that print no speed."""

    rows: list[Row]
    problems: list[str]


def bench(device: str, quick: bool) -> Iterator[list[Row]]:
    """Measure every scenario, print a table each, and give its rows."""
    for scenario in SCENARIOS[device][: 1 if quick else None]:
        rows, problems = measure(scenario, device, quick, rounds=(3, 30), seconds=SECONDS[device])
        show(title(scenario, rows), rows, problems)
        yield rows
    print("TFLOP/s and %peak count the task's arithmetic (logits once), ÷best is over the fastest")
    print("peer, MiB the peak above the inputs, error that of the gradients' worst row.")
    print(peers.missing(device))


def measure(
    scenario: Scenario, device: str, quick: bool, rounds: tuple[int, int], seconds: float
) -> Measured:
    """Check, time (``rounds`` and ``seconds`` of each) and weigh every implementation."""
    torch._dynamo.reset()  # it would stop compiling after eight shapes
    names = implementations(scenario, device)
    exact = step("eager", scenario, scenario.make(device, scenario.exact_dtype))()
    task = made(scenario, device)
    calls = {name: step(name, scenario, task) for name in names}
    problems: list[str] = []
    errors = {name: judge(name, call, exact, problems) for name, call in calls.items()}
    del exact
    allowed = 2 * errors["eager"]
    right = {}
    for name, found in errors.items():
        limit = allowed if name == WE else max(allowed, PEER_ERROR)
        if found <= limit:
            right[name] = calls[name]
        elif found == found:
            problems.append(f"{name}: error {found:.2g}, allowed {limit:.2g}")
    times = interleaved(
        right, device=device, warmup=1, rounds=(1, 1) if quick else rounds, seconds=seconds
    )
    best = min((times[name] for name in times if name != WE), default=None)
    least = peaks.roofline(device, scenario.dtype, scenario.flops, scenario.bytes)
    rows = []
    for name in names:
        time, memory = times.get(name), None
        if time and not quick:
            memory = extra_peak(build, name, scenario, device, device=device)
        row = Row(
            NAME[scenario.kind],
            scenario.name,
            name,
            seconds=time,
            tflops=time and scenario.flops / time / 1e12,
            gbps=time and scenario.bytes / time / 1e9,
            roofline=time and least / time,
            ratio=time and best and time / best,
            error=errors[name],
            peak=memory and memory.peak,
            returned=memory and memory.returned,
            shape=(scenario.rows, scenario.width, scenario.columns),
        )
        rows.append(row)
    return Measured(rows, problems)


def implementations(scenario: Scenario, device: str) -> list[str]:
    able = peers.for_task(scenario.kind, device)
    wanted = able if scenario.peers is None else [name for name in scenario.peers if name in able]
    return [WE, *wanted]


def step(name: str, scenario: Scenario, task: Task) -> Callable[[], tuple[Tensor, ...]]:
    """A call that returns the loss and the gradients of what is trained."""
    able = OURS if name == WE else peers.for_task(scenario.kind, task.target.device.type)
    loss_of = able[scenario.kind if name == WE else name]
    leaves = [tensor for tensor in task.inputs if tensor.requires_grad]

    def call() -> tuple[Tensor, ...]:
        loss = loss_of(task)
        return (loss.detach(), *(torch.autograd.grad(loss, leaves) if leaves else ()))

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
    """The worst of loss and gradients, each relative to the largest row of the truth."""
    worst = 0.0
    for a, b in zip(got, exact, strict=True):
        rows = (a.to(b.dtype) - b).reshape(b.shape[0] if b.dim() else 1, -1).norm(dim=1)
        rows = rows.nan_to_num(nan=inf)
        scale = b.reshape(b.shape[0] if b.dim() else 1, -1).norm(dim=1).max()
        worst = max(worst, float(rows.max() / scale))
    return worst


def title(scenario: Scenario, rows: list[Row]) -> str:
    returned = next((row.returned for row in rows if row.returned), None)
    results = f"; results: {returned / 2**20:.0f} MiB" if returned else ""
    return f"{NAME[scenario.kind]}, {scenario.describe()}{results}"
