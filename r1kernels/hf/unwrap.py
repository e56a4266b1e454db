"""The HuggingFace model in what a caller holds, or a message that says what to hand over."""

from __future__ import annotations

from typing import Any

from torch import nn

# Where wrappers keep the model: DDP and DeepSpeed, FSDP, torch.compile, TRL's value heads.
INSIDE = ("module", "_fsdp_wrapped_module", "_orig_mod", "pretrained_model")


def unwrap(op: str, model: Any) -> Any:
    """The HuggingFace model in peft's wrapper, or the model itself.

    Raises:
        TypeError: it is something else, such as a model that DDP or ``torch.compile`` has wrapped.
    """
    refuse_wrapped(op, model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model: {_not_a_module(model)}")
    base: Any = model
    if hasattr(model, "get_base_model"):
        base = base.get_base_model()
        refuse_wrapped(op, base)
    if not hasattr(base, "get_output_embeddings"):
        raise TypeError(
            f"{op}: model: expected a HuggingFace model (transformers.PreTrainedModel), got "
            f"{_a(type(model).__name__)}; for a model of your own call "
            f"r1kernels.linear_cross_entropy or r1kernels.fused_linear_grpo_loss with its hidden "
            f"states and its head's weight"
        )
    return base


def refuse_wrapped(op: str, model: Any) -> None:
    """Raises TypeError for what DDP, FSDP, DeepSpeed, ``torch.compile`` and the like make."""
    # By their children: some hand on every attribute, so that hasattr finds the model's.
    children = vars(model).get("_modules", {}) if isinstance(model, nn.Module) else {}
    for name in INSIDE:
        inner = children.get(name)
        if inner is None or not (
            hasattr(inner, "get_output_embeddings") or hasattr(inner, "get_base_model")
        ):
            continue
        wrapper = type(model).__name__
        how = "torch.compile" if name == "_orig_mod" else wrapper
        raise TypeError(
            f"{op}: model: expected a HuggingFace model, got {_a(wrapper)} around "
            f"{_a(type(inner).__name__)}; patch the model before it is wrapped, as in "
            f"{how}(hf.patch(model)), and hand the model itself (here .{name}) to {op}"
        )


def _not_a_module(model: Any) -> str:
    if isinstance(model, str):
        return (
            f"expected a HuggingFace model, got the name {model!r}; load it first, with "
            f"transformers.AutoModelForCausalLM.from_pretrained"
        )
    return f"expected a HuggingFace model, got {_a(type(model).__name__)}"


def _a(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"
