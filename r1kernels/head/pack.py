"""Padded sequences to the packed rows that the head ops take, with the shift by one."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from r1kernels.core import check

NAME = "pack"
MASKS = (torch.bool, *check.INTS, torch.int16, torch.int8, torch.uint8, *check.FLOATS)


class Packed(NamedTuple):
    """The N tokens that count, row after row: arguments of the functions with a linear head."""

    hidden: Tensor
    """[N, H]: the hidden state that predicts each token, which stands one position before it."""
    target: Tensor
    """[N]: the tokens, dtype of ``input_ids``."""
    cu_seqlens: Tensor
    """[B + 1] int32: row b of the padded batch is rows cu_seqlens[b] … cu_seqlens[b+1] − 1."""


def pack(hidden_states: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Packed:
    """The tokens under a mask and the hidden states that predict them, without padding.

    A causal model's hidden state at position t − 1 predicts the token at t. Nothing can tell
    afterwards that this shift was forgotten or made twice, so it is made here, once:

    >>> ids = torch.cat([prompt_ids, completion_ids], 1)
    >>> hidden_states = model.model(ids, attention_mask).last_hidden_state  # not shifted
    >>> packed = r1kernels.pack(hidden_states, ids, completion_mask)
    >>> r1kernels.fused_linear_grpo_loss(
    ...     packed.hidden, model.lm_head.weight, packed.target, cu_seqlens=packed.cu_seqlens,
    ...     advantages=advantages, old_logprob=old_logprob[completion_mask.bool()])

    What is [B, C] beside it is packed by ``values[completion_mask.bool()]``, and what comes out as
    [N] goes back by ``torch.zeros(B, C).masked_scatter(completion_mask.bool(), values)``.

    Padding may stand on either side. The mask may have holes, such as the outputs of tools: a row
    is one sequence of the tokens that count, in their order, and the first one after a hole is
    predicted from the hole's last position. A row without such tokens is an empty sequence.

    Args:
        hidden_states: [B, L, H], float32, bfloat16, float16 or float64, as the model gives them:
            at the same positions as ``input_ids``.
        input_ids: [B, L], int64 or int32.
        completion_mask: [B, L], or [B, C] for the last C < L positions as TRL has it; bool, int or
            float, 1 (True) where a token counts and 0 (False) elsewhere.

    Returns:
        ``Packed(hidden [N, H], target [N], cu_seqlens [B + 1])`` of the N tokens under the mask.
        Gradients flow to hidden_states, 0 at all other positions. How many they are is known on
        the device alone, so on a GPU this waits for it.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came; so does a mask
            with the first position in it, which has none before it, and one of other numbers.
    """
    shapes = check.Shapes(NAME)
    shapes("input_ids", input_ids, "B L", check.INTS)
    shapes("hidden_states", hidden_states, "B L H", check.FLOATS)
    shapes("completion_mask", completion_mask, "B C", MASKS)
    length, width = input_ids.shape[1], completion_mask.shape[1]
    if width > length:
        raise ValueError(
            f"{NAME}: completion_mask: expected C ≤ L = {length} columns, L being that of "
            f"input_ids, got {list(completion_mask.shape)}"
        )
    mask = completion_mask.bool()
    _check_values(completion_mask, mask, length)
    mask = F.pad(mask, (length - width, 0))
    token = mask.flatten().nonzero()[:, 0]
    return Packed(
        hidden_states.flatten(0, 1)[token - 1],
        input_ids.flatten()[token],
        F.pad(mask.sum(1).cumsum(0), (1, 0)).int(),
    )


def _check_values(given: Tensor, mask: Tensor, length: int) -> None:
    """The mask holds 0 and 1, and no token that nothing predicts. Under tracing, asked later."""
    wrong = given != mask
    first = mask[:, : max(mask.shape[1] - length + 1, 0)]  # position 0, if it is in the mask
    if torch.compiler.is_compiling():
        torch._assert_async(~wrong.any(), f"{NAME}: completion_mask: expected 0 or 1")
        torch._assert_async(~first.any(), f"{NAME}: completion_mask: expected 0 at position 0")
        return
    if wrong.any():
        at = wrong.nonzero()[0].tolist()
        got = given[tuple(at)].item()
        hint = " (of labels, labels != -100 is the mask)" if got == -100 else ""
        raise ValueError(f"{NAME}: completion_mask{at}: expected 0 or 1, got {got}{hint}")
    if first.any():
        row = int(first.nonzero()[0, 0])
        raise ValueError(
            f"{NAME}: completion_mask[{row}, 0]: expected 0, since no position before the first "
            "one predicts it; got 1 (input_ids and hidden_states are those of prompt and "
            "completion, not shifted; a mask [B, C] is of the last C of their L positions)"
        )
