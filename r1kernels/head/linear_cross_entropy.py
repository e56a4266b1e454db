"""Cross-entropy of a linear head: the logits never exist whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import nll_loss

from r1kernels.core import check
from r1kernels.head.linear_logprob import head_logprob

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

REDUCTIONS = ("mean", "sum", "none")


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    softcap: float | None = None,
    logit_scale: float = 1.0,
    tp_group: ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
) -> Tensor:
    """−log softmax(z)[target] with z = softcap·tanh(logit_scale·(hidden·weightᵀ + bias)/softcap).

    Equals ``F.cross_entropy(z, target)``. The products are accumulated in float32 and enter the
    log-sum-exp unrounded. Ignored rows are skipped in both passes.

    Args:
        hidden: [T, H], float32, bfloat16, float16 or float64.
        weight: [V, H], dtype of hidden. Under ``torch.autocast`` hidden, weight and bias are
            cast, as a linear layer casts them.
        target: [T], int64 or int32, values in [0, V) or ``ignore_index``: row t of hidden is the
            one that predicts target[t], as ``pack`` makes them of padded sequences.
        bias: [V], dtype of hidden.
        ignore_index: target of the rows that do not count; any int64.
        reduction: "mean" over the rows that count (NaN if there is none, with zero gradients, as
            in PyTorch), "sum", or "none": [T] with zeros at ignored rows.
        softcap: bound of the logits (Gemma); None for none.
        logit_scale: multiplies the logits after the bias (Cohere; Granite divides by its own).
        tp_group, vocab_start, vocab_size: a vocabulary in shards, or padded; see
            ``linear_logprob``.

    Returns:
        0-d, or [T] for "none"; float32 (float64 for float64 hidden), in nats.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    check.choice("linear_cross_entropy", "reduction", reduction, REDUCTIONS)
    check.int64("linear_cross_entropy", "ignore_index", ignore_index)
    logprob, _, _ = head_logprob(
        "linear_cross_entropy", hidden, weight, target, bias, 1.0, logit_scale, softcap,
        entropy=False, ignore_index=ignore_index, tp_group=tp_group, vocab_start=vocab_start,
        vocab_size=vocab_size,
    )  # fmt: skip
    if reduction == "none":
        return -logprob
    if reduction == "sum":
        return -logprob.sum()
    # The mean over rows of one class, which is one op, and its gradient another: it leaves ignored
    # rows alone even where no row counts and the mean is NaN.
    ignored = target.long() == ignore_index  # in 64 bits, which hold any of them
    return nll_loss(logprob[:, None], ignored.long(), ignore_index=1)
