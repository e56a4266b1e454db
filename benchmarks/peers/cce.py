"""Apple's cut cross-entropy: its Triton kernels on a GPU, its compiled form elsewhere."""

from __future__ import annotations

from torch import Tensor

from benchmarks.peers.adapt import Peer
from benchmarks.tasks import Task, losses_of

IMPL = {"cuda": "cce", "cpu": "torch_compile"}


def logprob(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    impl = IMPL[hidden.device.type]
    return -linear_cross_entropy(hidden, weight, target, reduction="none", impl=impl)


def cross_entropy(task: Task) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(*task.inputs, task.target, impl=IMPL[task.target.device.type])


PEERS = (
    Peer(
        "cce",
        losses_of(logprob) | {"cross_entropy": cross_entropy},
        needs=("cut_cross_entropy", "triton"),
    ),
)
