"""QuACK: cross-entropy on logits, and the chunked cross-entropy of a linear head.

CUDA only: ``pip install quack-kernels`` beside a CUDA build of PyTorch; no extra brings it, nor
``nvidia-cutlass-dsl[cu13]``, which it needs for CUDA 13. On Hopper its chunked form keeps
exponentials and never has the gradient of the logits.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks.peers.adapt import Peer, one_temperature
from benchmarks.tasks import Task, losses_of

CHUNK = 4096  # rows, its default


def of_logits(logits: Tensor, target: Tensor) -> Tensor:
    from quack.cross_entropy import cross_entropy

    return -cross_entropy(logits, target, reduction="none")


def of_hidden(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Its only form with a gradient per row: the logits exist, and the gradient overwrites them."""
    from quack.linear_cross_entropy import linear_cross_entropy_func

    return -linear_cross_entropy_func(
        hidden, weight, None, target, reduction="none", inplace_backward=True
    )


def cross_entropy(task: Task) -> Tensor:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(*task.inputs, task.target, chunk_size=CHUNK)


def logprob(
    *,
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | float | None = None,
    want_entropy: bool = False,
    **_: Any,
) -> dict[str, Tensor]:
    from quack.cross_entropy import cross_entropy_fwd

    if want_entropy or one_temperature(temperature) != 1:
        raise ValueError("computes no entropy and takes no temperature")
    loss, lse = cross_entropy_fwd(logits, target, return_lse=True)
    return {"logprob": -loss, "lse": lse}


def logprob_backward(
    *, dlogprob: Tensor, dentropy: Tensor, logits: Tensor, target: Tensor, lse: Tensor, **_: Any
) -> Tensor:
    from quack.cross_entropy import cross_entropy_bwd

    if dentropy.numel():
        raise ValueError("has no gradient of an entropy")
    return cross_entropy_bwd(logits, target, -dlogprob, lse)


PEERS = (
    Peer(
        "quack",
        tasks=losses_of(of_hidden)
        | losses_of(of_logits, given_logits=True)
        | {"cross_entropy": cross_entropy},
        ops={"logprob": logprob, "logprob_backward": logprob_backward},
        needs=("quack", "cutlass"),
        gpu_only=True,
    ),
)
