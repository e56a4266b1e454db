"""The pass for models whose layers cannot keep packed sequences apart: rows with padding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from r1kernels.hf import Head, with_hidden
from r1train.model.forward import extend, prefill
from r1train.model.packing import Packed
from r1train.model.routing import Routes


def padded_pass(
    model: PreTrainedModel,
    batch: Packed,
    fn: Callable[[Tensor, Head], Any],
    routes: Routes | None = None,
) -> Any:
    """`fn(hidden, head)` as in `Policy.run`: prompts once, then completions on top of them."""
    prompts = [batch.prompts[index] for index in batch.prompt_index]
    of_prompts = partial(with_hidden, model, lambda hidden, head: hidden)
    prefix = prefill(model, prompts, routes, of_prompts)
    tokens = [torch.tensor(completion) for completion in batch.completions]
    ids = pad_sequence(tokens, batch_first=True)
    ids = F.pad(ids, (0, max(2 - ids.shape[1], 0))).to(model.device)  # a second pass of something
    lengths = batch.cu_completions.diff()
    steps = torch.arange(ids.shape[1], device=model.device)
    valid = steps < lengths[:, None]

    def of_predictors(rest: Tensor, head: Head) -> Any:
        return fn(torch.cat([prefix.hidden[:, None], rest], 1)[valid], head)

    mask = torch.cat([prefix.mask, valid[:, 1:]], 1)
    positions = prefix.length[:, None] + steps[:-1]
    through_head = partial(with_hidden, model, of_predictors)
    return extend(model, prefix.cache, ids[:, :-1], mask, positions, routes, through_head)
