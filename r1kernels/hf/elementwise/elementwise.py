"""Norms, rotary positions, gated activations and residual adds of a model through fused ops.

They are a third to a half of a step's time on a GPU where each of their small operations reads and
writes its tensors anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from torch import nn

from r1kernels.hf.bound import Bound
from r1kernels.hf.elementwise.norms import (
    NormRule,
    is_patched,
    may_normalise,
    norm_forward,
    norm_rule,
)
from r1kernels.hf.elementwise.rewrite import Rewritten, rewritten
from r1kernels.hf.unwrap import unwrap

M = TypeVar("M")
# What modules of a patched model are marked with.
MARKS = ("_r1kernels_norm", "_r1kernels_rewritten", "_r1kernels_activation")


class Choice(NamedTuple):
    """What becomes of a module: a norm's rule or another forward, or neither; in words why."""

    name: str
    module: nn.Module
    new: NormRule | Rewritten | None
    reason: str


def patch_elementwise(model: M) -> M:
    """Make the norms, rotary positions, gated activations and residual adds of ``model`` fused ops.

    Results are those of the unpatched model bit for bit but where a row's sum of squares comes out
    another float32 for its order. A module is taken for what it computes, which is found by running
    it on random rows, or by the form of its source; one that does something else is left as it is
    (``explain_elementwise`` says why). Only this instance changes: its class does not, and no other
    module's globals. Parameters and ``state_dict`` stay as they are.

    Args:
        model: a HuggingFace model, or peft's wrapper of one.

    Returns:
        ``model``. A second call changes nothing.

    Raises:
        TypeError: it is no HuggingFace model, or is wrapped; says what to do.
    """
    causal = unwrap("patch_elementwise", model)
    if "_r1kernels_elementwise" in vars(causal):
        return model
    lines = []
    for name, module, new, reason in choose(causal):
        lines.append(f"{name}: {reason}")
        if isinstance(new, NormRule):
            module._r1kernels_norm = new  # type: ignore[assignment]
            module.forward = Bound(norm_forward, module)
        elif new is not None:
            module._r1kernels_rewritten = True  # type: ignore[assignment]
            module.forward = Bound(new, module)
            for child, activation in new.activations.items():
                if activation is not None:
                    getattr(module, child)._r1kernels_activation = activation
    causal._r1kernels_elementwise = tuple(lines)
    return model


def unpatch_elementwise(model: M) -> M:
    """Undo ``patch_elementwise`` and return ``model``.

    Raises:
        ValueError: the model is not patched, or the forward of a part of it was replaced since.
    """
    causal = unwrap("unpatch_elementwise", model)
    if "_r1kernels_elementwise" not in vars(causal):
        raise ValueError(f"unpatch_elementwise: {type(causal).__name__}: expected a patched model")
    for module in patched_modules("unpatch_elementwise", causal):
        del module.forward
    for module in causal.modules():
        for mark in MARKS:
            vars(module).pop(mark, None)
    del causal._r1kernels_elementwise
    return model


def patched_modules(caller: str, model: nn.Module) -> list[nn.Module]:
    """Those whose forward is ours.

    Raises:
        ValueError: one was replaced since.
    """
    found = []
    for name, module in model.named_modules():
        own = vars(module)
        if "forward" not in own or not ("_r1kernels_norm" in own or "_r1kernels_rewritten" in own):
            continue
        forward = own["forward"]
        rewrites = isinstance(forward, Bound) and isinstance(forward.function, Rewritten)
        if not (rewrites or is_patched(module)):
            raise ValueError(
                f"{caller}: {type(model).__name__}: {name}: its forward was replaced since"
            )
        found.append(module)
    return found


def explain_elementwise(model: Any) -> str:
    """One line for each norm, attention, MLP and layer of a patched model: what became of it.

    Raises:
        ValueError: the model is not patched.
    """
    model = unwrap("explain_elementwise", model)
    if "_r1kernels_elementwise" not in vars(model):
        raise ValueError(f"explain_elementwise: {type(model).__name__}: expected a patched model")
    return "\n".join(model._r1kernels_elementwise)


def choose(model: nn.Module) -> Iterator[Choice]:
    """What ``patch_elementwise`` would do with each module that has something of the kind."""
    for name, module in model.named_modules():
        if module is model:
            continue  # its forward is ``patch``'s
        if may_normalise(module):
            rule = norm_rule(module)
            taken = str(rule) if isinstance(rule, NormRule) else f"left, {rule}"
            yield Choice(name, module, rule if isinstance(rule, NormRule) else None, taken)
            continue
        if hasattr(module, "_is_expert_parallel"):
            continue  # ``patch_moe`` has them
        new = rewritten(module)
        if not new.changes and not new.left:
            continue
        if "forward" in vars(module):
            yield Choice(name, module, None, "left, its forward was replaced")
            continue
        said = [*new.changes, *(f"left {each}" for each in new.left)]
        yield Choice(name, module, new if new.changes else None, "; ".join(said))
