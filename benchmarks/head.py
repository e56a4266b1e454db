"""The headline: hidden states → GRPO loss → gradients, against what people run today.

All implementations get the same task: the clipped loss of ``T`` packed completion tokens, through a
language-model head, forward and backward. Error is that of the gradients against the same task in
float32: the largest row error over the largest row, so that one wrong row shows.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import r1kernels
from benchmarks.peers import TRL_CHUNK
from benchmarks.record import Row
from benchmarks.table import milliseconds, table
from r1kernels.op import PREFERENCE
from r1kernels.testing.memory import extra_peak
from r1kernels.testing.timing import interleaved

NAME = "fused_linear_grpo_loss"
H, V = 576, 49152
SEQUENCE = 64  # rows of one completion
CHUNK = 128  # rows that the checkpointed peer turns into logits at once
EPSILON = 0.2
TRL_INSTALLED = find_spec("trl") is not None
HEADER = ("task", "run by", "time", "÷ compile", "÷ full", "MiB", "grads", "÷ compile", "error")


class Task(NamedTuple):
    hidden: Tensor  # [T, H] bf16
    weight: Tensor  # [V, H] bf16
    target: Tensor  # [T]
    old_logprob: Tensor  # [T] f32
    advantages: Tensor  # [B] f32
    cu_seqlens: Tensor  # [B + 1] int32


class Scenario(NamedTuple):
    name: str
    rows: int
    active: float = 1.0  # share of the sequences with a nonzero advantage
    frozen: bool = False
    small: bool = False  # few peers: shows how cost grows with T

    def make(self, device: str, dtype: torch.dtype = torch.bfloat16) -> Task:
        rng = torch.Generator().manual_seed(self.rows)
        hidden = torch.randn(self.rows, H, generator=rng).bfloat16().to(device, dtype)
        weight = (torch.randn(V, H, generator=rng) / H**0.5).bfloat16().to(device, dtype)
        target = torch.randint(V, (self.rows,), generator=rng).to(device)
        sequences = self.rows // SEQUENCE
        advantages = torch.randn(sequences, generator=rng)
        idle = torch.randperm(sequences, generator=rng)[round(self.active * sequences) :]
        advantages[idle] = 0
        # Ratios inside the clip: every row of an active sequence has a gradient.
        shifts = torch.tensor([-0.1, -0.05, 0.05, 0.1])[
            torch.randint(4, (self.rows,), generator=rng)
        ]
        with torch.no_grad():
            old = r1kernels.linear_logprob(hidden.float(), weight.float(), target).logprob
        old += shifts.to(device)
        starts = torch.arange(0, self.rows + 1, SEQUENCE, dtype=torch.int32, device=device)
        weight.requires_grad_(not self.frozen)
        return Task(hidden.requires_grad_(), weight, target, old, advantages.to(device), starts)


SCENARIOS = (
    Scenario("all active", 1024),
    Scenario("37 % active", 1024, active=0.37),
    Scenario("frozen head", 1024, frozen=True),
    Scenario("T = 256", 256, small=True),
    Scenario("T = 4096", 4096, small=True),
)


def loss_of(logprob: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    """The clipped loss, mean over sequences of the token mean, in plain PyTorch."""
    advantage = advantages.repeat_interleave(SEQUENCE)
    ratio = (logprob - old).exp()
    clipped = ratio.clamp(1 - EPSILON, 1 + EPSILON)
    return -torch.minimum(ratio * advantage, clipped * advantage).mean()  # equal lengths


def plain_logprob(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    logits = (hidden @ weight.T).float()
    return logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(-1)


def plain(
    hidden: Tensor, weight: Tensor, target: Tensor, old: Tensor, advantages: Tensor
) -> Tensor:
    return loss_of(plain_logprob(hidden, weight, target), old, advantages)


compiled = torch.compile(plain, dynamic=False)


def run_eager(task: Task) -> Tensor:
    return plain(*task[:5])


def run_compile(task: Task) -> Tensor:
    return compiled(*task[:5])


def run_chunked(task: Task) -> Tensor:
    parts = [
        checkpoint(plain_logprob, hidden, task.weight, target, use_reentrant=False)
        for hidden, target in zip(task.hidden.split(CHUNK), task.target.split(CHUNK), strict=True)
    ]
    return loss_of(torch.cat(parts), task.old_logprob, task.advantages)


def run_trl(task: Task) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    logprob, *_ = ChunkedLogProbFunction.apply(
        task.hidden, task.weight, None, task.target, 1.0, TRL_CHUNK, None, 1.0, ()
    )
    return loss_of(logprob, task.old_logprob, task.advantages)


def run_ours(task: Task) -> Tensor:
    return r1kernels.fused_linear_grpo_loss(
        task.hidden,
        task.weight,
        task.target,
        advantages=task.advantages,
        cu_seqlens=task.cu_seqlens,
        old_logprob=task.old_logprob,
        epsilon=EPSILON,
    ).loss


RUN: dict[str, Callable[[Task], Tensor]] = {
    "r1kernels": run_ours,
    "compile": run_compile,
    "eager": run_eager,
    "chunked": run_chunked,
    "trl": run_trl,
}


def step(name: str, task: Task) -> Callable[[], tuple[Tensor, ...]]:
    """A call that returns the loss and the gradients of what is trained."""
    leaves = [tensor for tensor in (task.hidden, task.weight) if tensor.requires_grad]

    def call() -> tuple[Tensor, ...]:
        loss = RUN[name](task)
        return (loss.detach(), *torch.autograd.grad(loss, leaves))

    return call


def build(name: str, scenario: Scenario, device: str) -> Callable[[], tuple[Tensor, ...]]:
    return step(name, scenario.make(device))


def bench(device: str, quick: bool) -> list[Row]:
    """Measure every scenario, print the table, and give its rows."""
    found: list[Row] = []
    lines: list[list[str]] = []
    full: float | None = None
    for scenario in SCENARIOS[: 3 if quick else None]:
        rows = bench_scenario(scenario, device, quick)
        compiled = next(row for row in rows if row.implementation == "compile")
        full = full or compiled.seconds
        lines += [cells(row, compiled, None if scenario.small else full) for row in rows]
        if not scenario.small and not TRL_INSTALLED:
            lines.append([scenario.name, "trl", "not installed", *[""] * (len(HEADER) - 3)])
        found += rows
    print(f"\n{NAME}, forward + backward, bf16, H {H} × V {V}\n{table(HEADER, lines)}")
    print("÷ compile: over torch.compile on the same task; ÷ full: over torch.compile with")
    print("all rows active and the head trained. MiB: peak above the inputs; grads: the part of it")
    print(f"that is returned. Backends of r1kernels: {', '.join((*PREFERENCE[device], 'torch'))}.")
    return found


def bench_scenario(scenario: Scenario, device: str, quick: bool) -> list[Row]:
    names = [name for name in RUN if name != "trl" or TRL_INSTALLED]
    if scenario.small:
        names = ["r1kernels", "compile", "eager"]
    exact = step("eager", scenario.make(device, torch.float32))()
    calls = {name: step(name, task) for task in [scenario.make(device)] for name in names}
    errors = {name: error(call(), exact) for name, call in calls.items()}
    del exact
    right = {name: call for name, call in calls.items() if errors[name] <= 2 * errors["eager"]}
    seconds = interleaved(
        right, device=device, warmup=1, rounds=(1, 1) if quick else (8, 30), seconds=2.0
    )
    rows = []
    for name in names:
        time, memory = seconds.get(name), None
        if time is not None and not quick:
            memory = extra_peak(build, name, scenario, device, device=device)
        # 8·T·H·V: logits, logits again in the backward pass, and two gradients.
        flops = (6 if scenario.frozen else 8) * scenario.rows * H * V
        others = [seconds[other] for other in seconds if other != "r1kernels"]
        rows.append(
            Row(
                NAME,
                scenario.name,
                name,
                seconds=time,
                tflops=time and flops / time / 1e12,
                gbps=None,
                roofline=None,
                ratio=time / min(others) if time else None,
                error=errors[name],
                peak=memory and memory.peak,
                returned=memory and memory.returned,
            )
        )
    return rows


def error(got: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """The worst of loss and gradients, each relative to the largest row of the truth."""
    worst = 0.0
    for a, b in zip(got, exact, strict=True):
        rows = (a.float() - b).reshape(a.shape[0] if a.dim() else 1, -1).norm(dim=1)
        scale = b.reshape(b.shape[0] if b.dim() else 1, -1).norm(dim=1).max()
        worst = max(worst, float(rows.max() / scale))
    return worst


def cells(row: Row, compiled: Row, full: float | None) -> list[str]:
    def over(a: float | None, b: float | None) -> str:
        return f"{a / b:.2f}" if a and b else ""

    def mebibytes(size: int | None) -> str:
        return "" if size is None else f"{size / 2**20:.0f}"

    return [
        row.case,
        row.implementation,
        milliseconds(row.seconds),
        over(row.seconds, compiled.seconds),
        over(row.seconds, full),
        mebibytes(row.peak),
        mebibytes(row.returned),
        over(row.peak, compiled.peak),
        f"{row.error:.0e}",
    ]
