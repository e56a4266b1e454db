"""Log-probabilities of tokens under a patched model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from r1kernels.head.head import LogProb
from r1kernels.head.linear_logprob import linear_logprob
from r1kernels.hf.head.head import Head
from r1kernels.hf.patched import run_with_hidden

IGNORED = -100


def logprobs(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    **inputs: Any,
) -> LogProb:
    """Log-probability of each token given those before it, without logits.

    Only the rows that are asked for go through the head.

    Args:
        model: patched by ``hf.patch``, possibly wrapped since.
        input_ids: [B, S].
        attention_mask: [B, S], 0 at padding.
        labels: [B, S]: the tokens to score, −100 where none is wanted, such as in the prompt
            (default: ``input_ids``, −100 at padding).
        temperature: divides the logits last; a number or [B, S − 1].
        entropy: return the entropy of each distribution too.
        inputs: further arguments of the model.

    Returns:
        ``LogProb(logprob, entropy or None)``, [B, S − 1] each: column t is about token t + 1. Zero
        where the label is −100. Gradients flow from both.
    """
    output = score_tokens(
        model, input_ids, attention_mask, labels=labels, temperature=temperature, entropy=entropy,
        **inputs,
    )  # fmt: skip
    found: LogProb = output["through_head"]
    return found


def score_tokens(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    *,
    labels: Tensor | None,
    temperature: float | Tensor,
    entropy: bool,
    **inputs: Any,
) -> Any:
    """The model's own output, with what ``logprobs`` returns as its ``through_head``."""
    if labels is None:
        labels = input_ids
        if attention_mask is not None:
            labels = labels.masked_fill(attention_mask == 0, IGNORED)
    labels = labels[:, 1:]
    wanted = labels != IGNORED

    def score(hidden: Tensor, head: Head) -> LogProb:
        found = linear_logprob(
            head.rows(hidden[:, -wanted.shape[1] - 1 : -1][wanted]),  # after virtual tokens
            head.weight,
            labels[wanted],
            temperature=temperature[wanted] if isinstance(temperature, Tensor) else temperature,
            entropy=entropy,
            **head.options,
        )

        def padded(values: Tensor) -> Tensor:
            return values.new_zeros(wanted.shape).masked_scatter(wanted, values)

        return LogProb(
            padded(found.logprob), None if found.entropy is None else padded(found.entropy)
        )

    inputs |= {"input_ids": input_ids, "attention_mask": attention_mask}
    return run_with_hidden(model, score, **inputs)
