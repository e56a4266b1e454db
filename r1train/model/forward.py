"""Prompts once, then what follows them: the passes with a cache and with padding.

A group's G completions share their prompt, so its keys and values are computed once and repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

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
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    routes: Routes | None = None,
    backbone: Callable[..., Any] | None = None,
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
    hidden = extend(model, cache, ids, mask, positions, routes, backbone)
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
    backbone: Callable[..., Any] | None = None,
) -> Any:
    """Hidden states [B, S, H] of `ids` [B, S] after what `cache` holds, which grows by S tokens.

    `mask` [B, K + S] is False at padding, in the cache and in `ids`; `positions` is [B, S].
    `routes` records or replays where a mixture of experts sends the S tokens. `backbone` is called
    in place of the model's own, and what it gives is returned.
    """
    with routes.over(mask[:, -ids.shape[1] :]) if routes is not None else nullcontext():
        out = (backbone or model.base_model)(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
    return out if backbone else out.last_hidden_state
