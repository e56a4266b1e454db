"""What people run today instead of an op: functions of the op's arguments, with its outputs.

An output that a peer does not compute is None. A peer whose package is missing leaves the table.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from r1kernels.op import Op

Outputs = tuple["Tensor | None", ...]
TRL_CHUNK = 32768  # columns of a tile, as its trainers call it


def peers(op: Op) -> dict[str, Callable[..., Any]]:
    """Plain PyTorch, eager and compiled, and the libraries that are installed here."""
    reference = op.backends["torch"].run
    found = {"eager": reference, "compile": torch.compile(reference, dynamic=False)}
    if find_spec("trl") is not None and op.name in TRL:
        found["trl"] = TRL[op.name]
    return found


def trl_linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    keep: Tensor | None,
    temperature: float,
    logit_scale: float,
    softcap: float | None,
    want_entropy: bool,
    *_: Any,
) -> Outputs:
    from trl.kernels import ChunkedLogProbFunction

    outputs = ("entropy",) if want_entropy else ()
    logprob, entropy, *_ = ChunkedLogProbFunction.apply(
        hidden, weight, bias, target, temperature, TRL_CHUNK, softcap, logit_scale, outputs
    )
    return logprob, entropy, None, None, None


def trl_logprob(logits: Tensor, target: Tensor, temperature: float, *_: Any) -> Outputs:
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(logits, target, temperature).float(), None, None


TRL: dict[str, Callable[..., Outputs]] = {
    "linear_logprob": trl_linear_logprob,
    "logprob": trl_logprob,
}
