"""act(gate)·up through ``swiglu`` and ``geglu``: which activation a module is, found by asking."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from r1kernels.hf.probing import agrees, normal
from r1kernels.ops.gated_activation import GATED_ACTIVATION, activated

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")


def activation_of(module: nn.Module) -> str | None:
    """The name of the activation that a module is, if it is one that the ops know."""
    if module._parameters or module._buffers or module._modules:
        return None
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return None  # which would not run
    x = normal((4096,), torch.Generator("cpu").manual_seed(0)) * 3
    given = [x.to(dtype) for dtype in (torch.float32, torch.bfloat16)]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            seen = [(each, module(each)) for each in given]
        except Exception:  # of whatever kind: it is no activation
            return None
    for name in ACTIVATIONS:
        if all(agrees(activated(each, name), y) for each, y in seen):
            return name
    return None


def gated(activation: str, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate)·up, also where one of them has another dtype."""
    if gate.dtype != up.dtype or gate.shape != up.shape:
        return activated(gate, activation) * up
    y: Tensor = GATED_ACTIVATION(gate, up, activation)
    return y
