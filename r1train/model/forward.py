"""The two passes everything here is made of: prompts once, then completions on top of them.

A group's G completions share their prompt, so its keys and values are computed once and repeated.
Rollout, supervised training and the policy gradient all start from the same `Prefix`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from r1train.data.encode import distinct
from r1train.model.routing import Routes


@dataclass
class Prefix:
    """Prompts that went through the backbone, one row for each sequence that follows them."""

    cache: DynamicCache
    mask: Tensor  # [B, K] bool, False at the padding on the left
    length: Tensor  # [B] tokens so far, the position of the next one
    hidden: Tensor  # [B, H] last hidden state, which predicts the next token

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders rows: row i becomes what row `rows[i]` was."""
        self.cache.batch_select_indices(rows)
        self.mask, self.length = self.mask[rows], self.length[rows]
        self.hidden = self.hidden[rows]


def prefill(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], routes: Routes | None = None
) -> Prefix:
    """Runs every distinct prompt through the backbone once; row i of the result is `prompts[i]`."""
    shared, row_of = distinct(prompts)
    tokens = [torch.tensor(prompt) for prompt in shared]
    length = torch.tensor([len(prompt) for prompt in shared], device=model.device)
    ids = pad_sequence(tokens, batch_first=True, padding_side="left").to(model.device)
    steps = torch.arange(ids.shape[1], device=model.device)
    mask = steps >= ids.shape[1] - length[:, None]
    positions = (steps - (~mask).sum(1, keepdim=True)).clamp(min=0)
    cache = DynamicCache(config=model.config)
    hidden = extend(model, cache, ids, mask, positions, routes)
    prefix = Prefix(cache, mask, length, hidden[:, -1])
    if len(shared) < len(prompts):
        prefix.select(torch.tensor(row_of, device=model.device))
    return prefix


def extend(
    model: PreTrainedModel,
    cache: DynamicCache,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    routes: Routes | None = None,
) -> Tensor:
    """Hidden states [B, S, H] of `ids` [B, S] after what `cache` holds, which grows by S tokens.

    `mask` [B, K + S] is False at padding, in the cache and in `ids`; `positions` is [B, S].
    `routes` records or replays where a mixture of experts sends the S tokens.
    """
    with routes.over(mask[:, -ids.shape[1] :]) if routes is not None else nullcontext():
        out = model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
    hidden: Tensor = out.last_hidden_state
    return hidden


def completion_hidden(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    routes: Routes | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden states that predict the tokens of `completions`, packed, and those tokens.

    Returns hidden [T, H], target [T] and cu_seqlens int32 [B + 1], where T counts completion tokens
    only: prompts and padding never reach the language-model head.
    """
    prefix = prefill(model, prompts, routes)
    tokens = [torch.tensor(completion) for completion in completions]
    ids = pad_sequence(tokens, batch_first=True).to(model.device)  # [B, S]
    lengths = torch.tensor([len(completion) for completion in completions])
    steps = torch.arange(ids.shape[1], device=model.device)
    valid = steps < lengths.to(model.device)[:, None]
    hidden = prefix.hidden[:, None]
    if ids.shape[1] > 1:  # the last token of a completion predicts nothing that is trained on
        mask = torch.cat([prefix.mask, valid[:, 1:]], 1)
        positions = prefix.length[:, None] + steps[:-1]
        rest = extend(model, prefix.cache, ids[:, :-1], mask, positions, routes)
        hidden = torch.cat([hidden, rest], 1)
    cu_seqlens = torch.zeros(len(tokens) + 1, dtype=torch.int32)
    cu_seqlens[1:] = lengths.cumsum(0)
    return hidden[valid], ids[valid], cu_seqlens.to(model.device)
