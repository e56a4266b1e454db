"""Packed sequences through HuggingFace models: no padding, no mask, every prompt once.

A model takes one row of tokens, [1, T] with their positions, and passes ``packing=`` on to its
attention, which is ``packed_attention``; on a GPU it is flash attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from r1kernels.attention.packed_attention import packed_attention
from r1kernels.core import check
from r1kernels.hf.attention.packed_flash import packed_flash

NAME = "r1_packed"
# What a layer may pass to its attention, and what would then be another function.
REFUSED = ("attention_mask", "sliding_window", "softcap", "s_aux", "position_bias", "cache")


class Packing(NamedTuple):
    """Segments of one row of tokens: ``pack_segments`` makes it."""

    cu_seqlens: Tensor
    """[S + 1] int32: segment s is tokens cu_seqlens[s] to cu_seqlens[s + 1]."""
    prefix: Tensor
    """[S] int32: −1, or the segment whose keys it sees before its own."""
    longest: int
    """Tokens of the longest segment."""
    first: int
    """Where segments that have a prefix begin, which come last."""
    group_queries: Tensor
    """[P + 1] int32: where the tokens that see each prefix begin, counted from ``first``."""
    group_keys: Tensor
    """[P + 1] int32: where each prefix begins."""
    longest_group: int
    """Tokens that see the same prefix, at most."""
    longest_prefix: int
    """Tokens of the longest prefix."""


def pack_segments(
    lengths: Sequence[int], prefix: Sequence[int], device: torch.device | str = "cpu"
) -> Packing:
    """The packing of segments that follow one another in a row.

    Those without a prefix come first, and then the others in the order of their prefixes: all
    prompts, and then all completions of the first, of the second, and so on.

    Args:
        lengths: tokens of each segment.
        prefix: for each of them −1, or the segment whose keys it sees before its own.
        device: of the tensors, which is the model's.

    Raises:
        ValueError: they are in another order, or a prefix is empty.
    """
    count = sum(p < 0 for p in prefix)
    if len(prefix) != len(lengths) or min(lengths, default=0) < 0:
        raise ValueError("pack_segments: prefix: expected one for each length, of 0 or more")
    if list(prefix) != [-1] * count + sorted(prefix[count:]) or max(prefix, default=-1) >= count:
        raise ValueError(
            "pack_segments: prefix: expected −1 for the first segments and then segments among "
            f"these, never falling, got {check.described(list(prefix))}"
        )
    groups = [0] * count
    for length, before in zip(lengths[count:], prefix[count:], strict=True):
        groups[before] += length
    if any(tokens and not length for tokens, length in zip(groups, lengths, strict=False)):
        raise ValueError("pack_segments: lengths: expected a token or more in every prefix")

    def starts(of: Sequence[int]) -> Tensor:
        return torch.tensor([0, *accumulate(of)], dtype=torch.int32, device=device)

    return Packing(
        cu_seqlens=starts(lengths),
        prefix=torch.tensor(list(prefix), dtype=torch.int32, device=device),
        longest=max(lengths, default=0),
        first=sum(lengths[:count]),
        group_queries=starts(groups),
        group_keys=starts(lengths[:count]),
        longest_group=max(groups, default=0),
        longest_prefix=max(lengths[:count], default=0),
    )


def register_packed() -> None:
    """Make transformers know ``attn_implementation="r1_packed"``, which needs ``packing=``.

    >>> register_packed()
    >>> model.set_attn_implementation("r1_packed")
    >>> model.base_model(ids, position_ids=positions, use_cache=False, packing=packing)
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_forward)


def packed_refusal(model: nn.Module) -> str | None:
    """Why ``model`` cannot take packed rows, or None if it can.

    Its layers must all attend to everything before them: no window, no cap of scores, no sinks; and
    no layer may mix tokens in another way (a recurrence or a convolution).
    """
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    name = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False):
        return f"{name}: its attention cannot be replaced"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"{name}: layers of other kinds: {', '.join(sorted(kinds))}"
    if getattr(model, "_is_stateful", False):
        return f"{name}: layers that keep a state"
    options = ["attn_logit_softcapping"]
    options += ["sliding_window"] * getattr(config, "use_sliding_window", True)
    for option in options:
        if (value := getattr(config, option, None)) is not None:
            return f"{name}: {option} = {value}"
    if any(hasattr(module, "sinks") for module in model.modules()):
        return f"{name}: its attention has sinks"
    dropout = getattr(config, "attention_dropout", None)
    if model.training and dropout:
        return f"{name}: attention_dropout = {dropout}"
    return None


def packed_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: query [1, Hq, T, D], key and value [1, Hkv, T, …].

    Returns:
        [1, T, Hq, Dv], and None for the weights.

    Raises:
        ValueError: no packing, several rows, or an option that would make it another function.
    """
    if packing is None:
        raise ValueError(f"{NAME}: packing: expected what pack_segments makes, got None")
    if query.shape[0] != 1:
        raise ValueError(f"{NAME}: query: expected one row of tokens, got {query.shape[0]}")
    options["attention_mask"] = attention_mask
    given = [name for name in REFUSED if options.get(name) is not None] + ["dropout"] * (
        dropout > 0
    )
    if given:
        raise ValueError(f"{NAME}: {given[0]}: expected none: it is not computed here")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        out = packed_flash(
            q, k, v, packing, query.shape[-1] ** -0.5 if scaling is None else scaling
        )
    else:
        out = packed_attention(q, k, v, packing.cu_seqlens, packing.prefix, scale=scaling)
    return out.unsqueeze(0), None
