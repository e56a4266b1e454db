"""What stands between the two products of a HuggingFace experts module."""

from __future__ import annotations

from typing import Any


def is_swiglu(experts: Any) -> bool:
    """Whether silu(gate)·up of two halves is what stands between a module's two products."""
    from transformers.integrations.moe import _default_apply_gate

    gate = getattr(experts._apply_gate, "__func__", None)
    return experts.has_gate and is_silu(experts) and gate is _default_apply_gate


def is_silu(experts: Any) -> bool:
    """Whether ``act_fn`` is PyTorch's SiLU or transformers' module of that name."""
    return type(getattr(experts, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
