"""Decoding with the keys and values of every prompt kept once for all of its completions.

The model is HuggingFace's own; only its attention is another function, which owns the cache. Keys
and values of a prompt are read by one product for the queries of its whole group; those of the
completions lie in a buffer that is written in place. There is no mask and no growing tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel

from r1train.engine.clock import Clock
from r1train.engine.grid import Grid, arrange
from r1train.engine.growing import Growing
from r1train.engine.workspace import Workspace

NAME = "r1_decode"
PAD = 64
"""Prompts are padded to multiples of it on a GPU, so that few shapes occur."""
REFUSED = ("attention_mask", "sliding_window", "softcap", "s_aux", "position_bias")
"""What a layer may pass to its attention, and what would then be another function."""

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.2}
"""Of hidden states, relative to their norm. In few bits a token near a tie may go to another
expert; an attention that is another function differs by as much as the states themselves."""


@dataclass
class Layer:
    """Keys and values of one layer, of the prompts and of the completions."""

    prompt_keys: Tensor  # [S, kv, P, D]
    prompt_values: Tensor  # [S, kv, P, Dv]
    keys: Tensor  # [S, kv, group, N, D]
    values: Tensor  # [S, kv, group, N, Dv]


class SharedPrefix:
    """A batch on its way through the model: prompts first, then a token of every slot at a time."""

    valid: Tensor
    """[P, Lp] bool: False at the padding of the prompts, as the model was given them."""
    bytes_per_token: int
    """Of the cache, for each token of a completion."""
    in_parts = True
    """Whether `start` can take a few prompts at a time."""

    def __init__(self, model: PreTrainedModel, workspace: Workspace) -> None:
        AttentionInterface.register(NAME, decode_attention)
        self.model, self.workspace = model, workspace
        self.layers: dict[int, Layer] = {}
        self.prefilled: dict[int, tuple[Tensor, Tensor]] | None = None

    def attending(self) -> AbstractContextManager[None]:
        """Around what follows."""
        return attention_of(self.model)

    def start(
        self, prompts: Sequence[Sequence[int]], grid: Grid, room: int, at_once: int
    ) -> Tensor:
        """Hidden states [B, H] that predict the first token of every slot.

        Args:
            grid: how their completions lie.
            room: tokens of a completion that there is room for.
            at_once: prompts that go through the model together.
        """
        device = self.model.device
        ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
        if device.type == "cuda":
            ids = F.pad(ids, (0, -ids.shape[1] % PAD))
        ids = ids.to(device)
        steps = torch.arange(ids.shape[1], device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        groups = torch.tensor(grid.prompts, device=device)
        self.grid, self.room, self.layers = grid, room, {}
        last = []
        for first in range(0, len(prompts), at_once):
            part = ids[first : first + at_once]
            self.prefilled = {}
            states = self._forward(part, steps.expand_as(part))
            rows = torch.arange(len(part), device=device)
            last.append(states[rows, lengths[first : first + at_once] - 1])
            self._keep_prompts(first, len(part))
        hidden = torch.cat(last)
        self.bytes_per_token = sum(
            tensor.shape[1] * tensor.shape[-1] * tensor.element_size()
            for layer in self.layers.values()
            for tensor in (layer.keys, layer.values)
        )
        heads = {layer.keys.shape[1] for layer in self.layers.values()}
        if len(heads) != 1:
            raise NotImplementedError(f"its layers have {sorted(heads)} heads of keys")
        bias = torch.zeros(steps.shape, dtype=hidden.dtype, device=device)
        bias = bias.expand(len(groups), -1).masked_fill(steps >= lengths[groups, None], -torch.inf)
        bias = bias.repeat_interleave(heads.pop(), 0)[:, None]
        self.bias = self._filled("bias", bias)  # [S · kv, 1, P]
        self.valid = steps < lengths[:, None]
        return hidden[groups].repeat_interleave(grid.group, 0)

    def forward(self, tokens: Tensor, positions: Tensor, clock: Clock) -> Tensor:
        """Hidden states [B, H] of `tokens` [B], each the next one of its slot.

        The clock says how many tokens the slots had before.
        """
        self.clock, self.reach = clock, clock.reach(self.room)
        self.later = clock.later(self.reach)
        return self._forward(tokens[:, None], positions[:, None])[:, 0]

    def rearrange(self, grid: Grid, step: int) -> None:
        """Moves what is kept to where `grid` has it, of the first `step` tokens of completions."""
        device, old_grid = self.model.device, self.grid
        groups = torch.tensor(grid.groups_of(old_grid), device=device)
        slots = torch.tensor(grid.slots_of(old_grid), device=device)
        self.grid = grid
        for index, old in self.layers.items():
            self.layers[index] = Layer(
                self._filled(f"prompt keys {index}", old.prompt_keys[groups]),
                self._filled(f"prompt values {index}", old.prompt_values[groups]),
                self._moved(f"keys {index}", old.keys, slots, step),
                self._moved(f"values {index}", old.values, slots, step),
            )
        bias = self.bias.unflatten(0, (len(old_grid.prompts), -1))[groups].flatten(0, 1)
        self.bias = self._filled("bias", bias)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of query [B, Hq, T, D] to what came before and to itself: [B, T, Hq, Dv]."""
        if self.prefilled is not None:
            self.prefilled[layer] = key, value
            grouped = query.shape[1] != key.shape[1]
            out = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
            )
            return out.transpose(1, 2)
        own = self.layers[layer]
        count, heads, prompt, width = own.prompt_keys.shape
        grid = (count, self.grid.group, heads)
        self.clock.put(own.keys, 3, key.view(*grid, width).transpose(1, 2))
        self.clock.put(own.values, 3, value.view(*grid, -1).transpose(1, 2))
        each = query.shape[1] // heads  # queries of a head of keys
        queries = (query * scale).view(*grid, each, width).transpose(1, 2)
        queries = queries.reshape(count * heads, -1, width)  # of a group, together
        before = torch.baddbmm(self.bias, queries, own.prompt_keys.flatten(0, 1).mT)
        alone = queries.reshape(-1, each, width)
        after = torch.bmm(alone, own.keys.flatten(0, 2)[:, : self.reach].mT)
        if self.later is not None:
            after = after.masked_fill(self.later, -torch.inf)
        scores = torch.cat([before.view(-1, each, prompt), after], -1)
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(-1, wide).to(value.dtype)
        of_prompt = weights[..., :prompt].reshape(count * heads, -1, prompt)
        out = torch.bmm(of_prompt, own.prompt_values.flatten(0, 1)).view(len(alone), each, -1)
        values = own.values.flatten(0, 2)[:, : self.reach]
        out = torch.baddbmm(out, weights[..., prompt:], values)
        return (
            out.view(*grid[::2], self.grid.group, each, -1)
            .transpose(1, 2)
            .reshape(len(query), 1, heads * each, -1)
        )

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        hidden: Tensor = self.model.base_model(
            input_ids=ids, position_ids=positions, use_cache=False, decoding=self
        ).last_hidden_state
        return hidden

    def _own(self, name: str, heads: int, width: int, dtype: torch.dtype) -> Tensor:
        shape = (len(self.grid.prompts), heads, self.grid.group, self.room, width)
        return self.workspace.take(name, shape, dtype)

    def _keep_prompts(self, first: int, count: int) -> None:
        """Puts the keys and values of `count` prompts where the groups are that continue them."""
        pairs = [(group, prompt - first) for group, prompt in enumerate(self.grid.prompts)]
        pairs = [(group, row) for group, row in pairs if 0 <= row < count]
        groups, rows = torch.tensor(pairs, device=self.model.device).T
        found, self.prefilled = self.prefilled or {}, None
        for index, (keys, values) in found.items():
            if index not in self.layers:
                self.layers[index] = self._empty_layer(index, keys, values)
            layer = self.layers[index]
            layer.prompt_keys.index_copy_(0, groups, keys[rows])
            layer.prompt_values.index_copy_(0, groups, values[rows])

    def _empty_layer(self, index: int, keys: Tensor, values: Tensor) -> Layer:
        """Room for all that is kept of a layer which gives such keys and values [P, kv, L, …]."""
        groups, take = (len(self.grid.prompts),), self.workspace.take
        return Layer(
            take(f"prompt keys {index}", groups + keys.shape[1:], keys.dtype),
            take(f"prompt values {index}", groups + values.shape[1:], values.dtype),
            self._own(f"keys {index}", keys.shape[1], keys.shape[-1], keys.dtype),
            self._own(f"values {index}", values.shape[1], values.shape[-1], values.dtype),
        )

    def _moved(self, name: str, old: Tensor, slots: Tensor, step: int) -> Tensor:
        """The rows of `slots` alone, in the first part of the same memory."""
        kept = old[..., :step, :].transpose(1, 2).flatten(0, 1)[slots]  # [B, kv, step, D]
        new = self._own(name, old.shape[1], old.shape[-1], old.dtype)
        new[..., :step, :] = kept.unflatten(0, (-1, self.grid.group)).transpose(1, 2)
        return new

    def _filled(self, name: str, values: Tensor) -> Tensor:
        return self.workspace.take(name, values.shape, values.dtype).copy_(values)


@torch.no_grad()
def prefix_for(
    model: PreTrainedModel, workspace: Workspace
) -> tuple[SharedPrefix | Growing, str | None]:
    """How `model` is decoded, and if not by `SharedPrefix`, why: it is tried, on a few tokens."""
    growing = Growing(model)
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    expected = _tried(growing)
    if other := kinds - {"full_attention"}:
        return growing, f"it has layers of other kinds: {', '.join(sorted(other))}"
    shared = SharedPrefix(model, workspace)
    try:
        found = _tried(shared)
    except NotImplementedError as error:
        return growing, str(error)
    if not (found - expected).norm() <= TOLERANCE[model.dtype] * expected.norm():
        return growing, "its hidden states come out differently"
    return shared, None


def _tried(prefix: SharedPrefix | Growing) -> Tensor:
    """Hidden states of two prompts and three completions of two tokens."""
    grid = arrange(range(3), [0, 0, 1])
    with prefix.attending():
        hidden = [prefix.start([[1, 0, 1], [0]], grid, 2, 2)]
        lengths = torch.tensor([3, 3, 1], device=hidden[0].device)
        for step in range(2):
            tokens = (lengths + step) % 2
            hidden.append(prefix.forward(tokens, lengths + step, Clock(step)))
    return torch.stack(hidden)


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    decoding: SharedPrefix | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: query [B, Hq, T, D], key and value [B, Hkv, T, …].

    Returns:
        [B, T, Hq, Dv], and None for the weights.

    Raises:
        NotImplementedError: an option that would make it another function.
    """
    options["attention_mask"] = attention_mask
    given = [name for name in REFUSED if options.get(name) is not None]
    if given or decoding is None:
        reason = f"its attention has {given[0]}" if given else "it does not pass options on"
        raise NotImplementedError(reason)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module
    return decoding.attend(layer.layer_idx, query, key, value, scale), None


@contextmanager
def attention_of(model: PreTrainedModel) -> Iterator[None]:
    """Within it the layers of `model` attend by `decode_attention`, and no mask is made."""
    every: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(each): each for each in every if hasattr(each, "_attn_implementation")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    for config, _ in before:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name
