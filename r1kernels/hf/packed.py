"""Attention of a HuggingFace model over a packed batch, where completions share their prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from r1kernels.ops.packed_attention import packed_attention

NAME = "r1_packed"
# What a layer may ask of its attention that this one does not do, unless it is None.
BEYOND = ("sliding_window", "softcap", "s_aux")


class Packing(Protocol):
    """Where the segments of a packed row are; see `packed_attention`."""

    cu_seqlens: Tensor
    prefix: Tensor


@contextmanager
def packed_attention_of(model: Any) -> Iterator[None]:
    """Within it, `model(input_ids, position_ids=…, packing=…)` is over one packed row.

    input_ids, position_ids: [1, T]. packing: has `cu_seqlens` and `prefix` as `packed_attention`
    takes them. No mask is made. A backward pass through gradient checkpoints runs layers again, so
    it must run inside the context too.

    Raises, when the model runs:
        NotImplementedError: a layer asks for what `packed_attention` does not do.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    before = [(c, c._attn_implementation) for c in configs.values()]
    for config, _ in before:
        config._attn_implementation = NAME  # no mask is known for it: HuggingFace makes none
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [1, Hq, T, D], key [1, Hkv, T, D], value [1, Hkv, T, Dv] → [1, T, Hq, Dv]."""
    beyond = [name for name in BEYOND if options.get(name) is not None]
    beyond += ["dropout"] * (dropout != 0) + ["a mask"] * (attention_mask is not None)
    if packing is None or beyond:
        asked = ", ".join(beyond) or "attention without packing"
        raise NotImplementedError(f"packed_attention: {type(module).__name__} asks for {asked}")
    q, k, v = (heads[0].transpose(0, 1) for heads in (query, key, value))
    out = packed_attention(q, k, v, packing.cu_seqlens, packing.prefix, scale=scaling)
    return out[None], None
