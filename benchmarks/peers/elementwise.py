"""Norms, rotations and gates: PyTorch's own operations, torch.compile, Liger and QuACK."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import elementwise_tasks
from benchmarks.elementwise_tasks import Run, Task
from benchmarks.peers.adapt import Peer

EPS = 1e-6


def norm(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    h = x + residual
    wide = h if h.dtype == torch.float64 else h.float()
    rows = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * rows.to(h.dtype), h


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos.unsqueeze(1) + torch.cat((-second, first), -1) * sin.unsqueeze(1)

    return turned(q), turned(k)


def gate(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def liger_norm(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    y, h = LigerFusedAddRMSNormFunction.apply(x, residual, weight, EPS, 0.0, "llama", False)
    return y, h


def liger_rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    from liger_kernel.ops.rope import LigerRopeFunction

    turned: tuple[Tensor, Tensor] = LigerRopeFunction.apply(q, k, cos, sin)
    return turned


def liger_gate(gate: Tensor, up: Tensor) -> Tensor:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    found: Tensor = LigerSiLUMulFunction.apply(gate, up)
    return found


def quack_norm(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    from quack.rmsnorm import rmsnorm

    y, h = rmsnorm(x, weight, residual=residual, eps=EPS, prenorm=True)
    return y, h


def tasks(in_place: bool = False, **functions: Callable[..., Any]) -> dict[str, Run]:
    """By kind. What works in place gets inputs of its own, which no one else reads."""

    def run(function: Callable[..., Any], task: Task) -> tuple[Tensor, ...]:
        return (_own(task) if in_place else task).through(function)

    return {kind: partial(run, function) for kind, function in functions.items()}


@lru_cache(maxsize=1)
def _own(task: Task) -> Task:
    return task._replace(inputs=tuple(x.detach().clone().requires_grad_() for x in task.inputs))


PLAIN = {"norm": norm, "rotate": rotate, "gate": gate}
COMPILED = {kind: torch.compile(function, dynamic=False) for kind, function in PLAIN.items()}
PEERS = (
    Peer("eager", tasks(**PLAIN)),
    Peer("compile", tasks(**COMPILED)),
    Peer(
        "liger",
        tasks(in_place=True, norm=liger_norm, rotate=liger_rotate, gate=liger_gate),
        needs=("liger_kernel", "triton"),
        gpu_only=True,
    ),
    Peer("quack", tasks(norm=quack_norm), needs=("quack", "cutlass"), gpu_only=True),
    Peer(
        "hf",
        {"layers": lambda task: elementwise_tasks.layers(task, elementwise_tasks.unpatched)},
        needs=("transformers",),
    ),
    Peer(
        "r1kernels, head alone",
        {"layers": lambda task: elementwise_tasks.layers(task, elementwise_tasks.head_alone)},
        needs=("transformers",),
    ),
)
