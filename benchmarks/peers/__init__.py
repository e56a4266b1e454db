"""What people run today instead of r1kernels: one file a package, and a common way to call them.

A peer may do whole tasks (``benchmarks.tasks``), or stand in for single ops, or both. One whose
package is missing leaves the tables, and a line under them says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.peers import (
    ablations,
    attention,
    cce,
    elementwise,
    fp8,
    hf,
    hf_train,
    liger,
    plain,
    quack,
    sampling,
    trl,
)
from benchmarks.peers.adapt import Peer, bind
from benchmarks.tasks import Loss
from r1kernels.core.op import Op

PEERS: tuple[Peer, ...] = (
    *plain.PEERS, *trl.PEERS, *liger.PEERS, *cce.PEERS, *quack.PEERS, *hf.PEERS, *hf_train.PEERS,
    *fp8.PEERS, *elementwise.PEERS, *sampling.PEERS, *attention.PEERS,
    *ablations.PEERS,
)  # fmt: skip


def for_task(kind: str, device: str) -> dict[str, Loss]:
    """The peers that do tasks of ``kind`` on ``device``, by name."""
    return {p.name: p.tasks[kind] for p in PEERS if kind in p.tasks and not p.missing(device)}


def for_op(op: Op, device: str) -> dict[str, Callable[..., Any]]:
    """The peers of ``op`` on ``device``, by name: functions of its arguments, with its outputs."""
    found = plain.of_op(op)
    for peer in PEERS:
        if op.name in peer.ops and not peer.missing(device):
            found[peer.name] = bind(op, peer.ops[op.name])
    return found


def missing(device: str) -> str:
    """One line for each peer that cannot run on ``device``, with the reason."""
    reasons = {peer.name: peer.missing(device) for peer in PEERS}
    return "\n".join(f"no {name}: {reason}" for name, reason in reasons.items() if reason)
