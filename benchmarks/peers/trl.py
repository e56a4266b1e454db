"""TRL: the chunked log-probabilities of its GRPO trainer, and its selective log-softmax."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks.peers.adapt import Peer, one_temperature
from benchmarks.peers.trl_train import update
from benchmarks.tasks import losses_of

TILE = 32768  # columns of a tile, as its trainers call it


def linear_logprob(
    *,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    temperature: Tensor | float | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    want_entropy: bool = False,
    **_: Any,
) -> dict[str, Tensor]:
    from trl.kernels import ChunkedLogProbFunction

    outputs = ("entropy",) if want_entropy else ()
    logprob, entropy, *_rest = ChunkedLogProbFunction.apply(
        hidden, weight, bias, target, one_temperature(temperature), TILE, softcap, logit_scale,
        outputs,
    )  # fmt: skip
    return {"logprob": logprob, "entropy": entropy}


def logprob(
    *,
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | float | None = None,
    want_entropy: bool = False,
    **_: Any,
) -> dict[str, Tensor]:
    scale = one_temperature(temperature)
    if logits.is_cuda:  # what the two functions below come to there, without what else they import
        from trl.kernels import selective_log_softmax_and_entropy

        both = selective_log_softmax_and_entropy(logits, target, temperature=scale)
        return dict(zip(("logprob", "entropy"), both[: 1 + want_entropy], strict=False))
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    found = {"logprob": selective_log_softmax(logits, target, scale).float()}
    if want_entropy:
        found["entropy"] = entropy_from_logits(logits / scale).float()
    return found


def _of_hidden(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return linear_logprob(hidden=hidden, weight=weight, target=target)["logprob"]


def _of_logits(logits: Tensor, target: Tensor) -> Tensor:
    return logprob(logits=logits, target=target)["logprob"]


PEERS = (
    Peer(
        "trl",
        tasks={
            **losses_of(_of_hidden),
            **losses_of(_of_logits, given_logits=True),
            "update": update,
        },
        ops={"linear_logprob": linear_logprob, "logprob": logprob},
        needs=("trl",),
    ),
)
