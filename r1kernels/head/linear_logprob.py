"""Log-probabilities of given tokens straight from hidden states: the logits never exist whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from r1kernels.core import autocast, check
from r1kernels.core.remembered import remembered
from r1kernels.head import head
from r1kernels.head.candidate_logprob import CANDIDATE_LOGPROB
from r1kernels.head.head import LogProb
from r1kernels.head.kept_memory import rows_that_fit
from r1kernels.head.linear_logprob_op import LINEAR_LOGPROB
from r1kernels.head.vocab_parallel import vocab_parallel_logprob

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    candidate_ids: Tensor | None = None,
    candidate_offsets: Tensor | None = None,
    tp_group: ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
) -> LogProb:
    """log softmax(z)[target] of z = cap(logit_scale·(hidden·weightᵀ + bias))/temperature.

    cap(x) = softcap·tanh(x/softcap), or x without a softcap.

    The products are accumulated in float32 and enter the log-sum-exp unrounded. Extra memory is
    bounded whatever T and V are: ``kept_memory`` says by what. Rows whose upstream gradient is zero
    cost nothing in the backward pass; on a GPU, where shares are kept, runs of 64 of them and more.
    Gradients flow to hidden, weight and bias, from both outputs.

    Args:
        hidden: [T, H], float32, bfloat16, float16 or float64.
        weight: [V, H], dtype of hidden: the ``lm_head.weight`` of HuggingFace models. Under
            ``torch.autocast`` hidden, weight and bias are cast, as a linear layer casts them.
        target: [T], int64 or int32, values in [0, V): row t of hidden is the one that predicts
            target[t], as ``pack`` makes them of padded sequences.
        bias: [V], dtype of hidden.
        temperature: divides the logits last, finite and above 0: a number, or one a row, [T],
            float32 (float64 for float64), whose values are checked on a CPU and in ``checked()``.
        logit_scale: multiplies the logits after the bias (Cohere; Granite divides by its own).
        softcap: bound of the logits before the temperature (Gemma); None for none.
        entropy: return the entropy of each row's distribution too.
        candidate_ids, candidate_offsets: [N] and [T+1], int64 or int32: row t's softmax runs over
            the ids ``candidate_ids[candidate_offsets[t]:candidate_offsets[t + 1]]`` alone, each id
            once, the target among them: what top-k and top-p let the sampler draw from
            (``r1kernels.candidates`` makes them). Costs N·H operations instead of T·V·H.
        tp_group: ranks that hold the vocabulary in shards (tensor parallelism). Then weight and
            bias are this rank's; hidden, target and the upstream gradients are the same on every
            rank, and so are, bit for bit, the results and the gradient of hidden, which is summed
            over the ranks in here: hidden needs no all-reduce around this function.
        vocab_start: the id of this rank's first row of weight; targets are global ids.
        vocab_size: ids from here on are padding of the weight: they have no probability and no
            gradient. Default: none is.

    Returns:
        ``LogProb(logprob [T], entropy [T] or None)``, float32, in nats.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    logprob, entropies, _ = head_logprob(
        "linear_logprob", hidden, weight, target, bias, temperature, logit_scale, softcap, entropy,
        candidate_ids=candidate_ids, candidate_offsets=candidate_offsets, tp_group=tp_group,
        vocab_start=vocab_start, vocab_size=vocab_size,
    )  # fmt: skip
    return LogProb(logprob, entropies)


def head_logprob(
    name: str,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    temperature: float | Tensor,
    logit_scale: float,
    softcap: float | None,
    entropy: bool,
    *,
    entropy_grad: bool = True,
    ignore_index: int = head.NO_IGNORE,
    keep: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    candidate_offsets: Tensor | None = None,
    tp_group: ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
) -> tuple[Tensor, Tensor | None, str]:
    """Check, choose the regime, run. Shared by every function that has a linear head in it.

    ``keep`` [T] bool marks the rows that can receive a gradient (default: all). Without
    ``entropy_grad`` the entropy is a mere figure, and does not cost the cheaper regimes.
    Returns (logprob, entropy or None, regime). The regime says how the gradient is made:

    - "forward_only": there is none;
    - "kept": probabilities of the rows that fit in ``kept_memory`` (all of them, when each row has
      its candidates) are kept, the rest made again;
    - "recompute": all made again (softcap, an entropy with a gradient, shards on a GPU);
    - "frozen_head": the gradient of hidden is made in the forward pass, weight has none.
    """
    hidden, weight, bias = autocast.cast(hidden, weight, bias)
    _check(
        name, hidden, weight, target, bias, entropy, logit_scale, softcap, tp_group, vocab_start,
        vocab_size, temperature, candidate_ids, candidate_offsets,
    )  # fmt: skip
    rows = head.row_temperature(temperature, hidden)
    if vocab_size is not None and tp_group is None:
        weight, bias = weight[:vocab_size], None if bias is None else bias[:vocab_size]

    head_grad = weight.requires_grad or (bias is not None and bias.requires_grad)
    any_grad = torch.is_grad_enabled() and (head_grad or hidden.requires_grad)
    if candidate_ids is not None or candidate_offsets is not None:
        with check.on_behalf_of(name):
            logprob, entropies, *_ = CANDIDATE_LOGPROB(
                hidden, weight, target, candidate_ids, candidate_offsets, bias, rows,
                logit_scale, softcap, entropy, ignore_index,
            )  # fmt: skip
        entropies = entropies if entropy_grad else entropies.detach()
        return logprob, entropies if entropy else None, "kept" if any_grad else "forward_only"

    kept_rows, frozen_head = 0, False
    entropy_grad = entropy and entropy_grad
    if not any_grad:
        regime = "forward_only"
    elif not head_grad and not entropy_grad:
        regime, frozen_head = "frozen_head", True
    elif softcap is None and not entropy_grad and (tp_group is None or not hidden.is_cuda):
        regime, kept_rows = "kept", rows_that_fit(hidden, weight)
    else:
        regime = "recompute"
    arguments = (
        hidden, weight, target, bias, keep, rows, logit_scale, softcap,
        entropy, entropy_grad, kept_rows, frozen_head, ignore_index,
    )  # fmt: skip
    if tp_group is None:
        with check.on_behalf_of(name):
            logprob, entropies, *_ = LINEAR_LOGPROB(*arguments, False)
    else:
        logprob, entropies = vocab_parallel_logprob(
            name, *arguments, group=tp_group, start=vocab_start, size=vocab_size
        )
    return logprob, entropies if entropy else None, regime


@remembered
def _check(
    name: str,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    entropy: bool,
    logit_scale: float,
    softcap: float | None,
    tp_group: ProcessGroup | None,
    vocab_start: int,
    vocab_size: int | None,
    temperature: float | Tensor,
    candidate_ids: Tensor | None,
    candidate_offsets: Tensor | None,
) -> None:
    shapes = check.Shapes(name, check.PACK)
    shapes("hidden", hidden, "T H", check.FLOATS)
    shapes("weight", weight, "V H", (hidden.dtype,))
    shapes("target", target, "T", check.INTS)
    if bias is not None:
        shapes("bias", bias, "V", (hidden.dtype,))
    check.flag(name, "entropy", entropy)
    head.check_options(name, logit_scale, softcap)
    _check_vocabulary(shapes, tp_group, vocab_start, vocab_size)
    head.check_temperature(shapes, temperature, hidden)
    if candidate_ids is not None or candidate_offsets is not None:
        _check_candidates(shapes, candidate_ids, candidate_offsets, tp_group)


def _check_vocabulary(
    shapes: check.Shapes, tp_group: ProcessGroup | None, vocab_start: int, vocab_size: int | None
) -> None:
    if vocab_size is not None:
        check.count(shapes.op, "vocab_size", vocab_size)
    if tp_group is not None and not hasattr(tp_group, "rank"):
        raise TypeError(
            f"{shapes.op}: tp_group: expected a ProcessGroup, got {check.described(tp_group)}"
        )
    check.count(shapes.op, "vocab_start", vocab_start, least=0)
    if vocab_start and tp_group is None:
        raise ValueError(
            f"{shapes.op}: vocab_start: expected 0 without a tp_group, got {vocab_start}"
        )


def _check_candidates(
    shapes: check.Shapes, ids: Any, offsets: Any, tp_group: ProcessGroup | None
) -> None:
    shapes("candidate_ids", ids, "N", check.INTS)
    shapes("candidate_offsets", offsets, "T+1", (ids.dtype,))
    rows = shapes.sizes["T"]
    if offsets.shape[0] != rows + 1:
        raise ValueError(
            f"{shapes.op}: candidate_offsets: expected T + 1 = {rows + 1} offsets, "
            f"got {offsets.shape[0]}"
        )
    if tp_group is not None:
        raise ValueError(f"{shapes.op}: tp_group: expected None with candidate_ids")
