"""Whether somebody waits for a module to be called, whose work must then not be done around it."""

from __future__ import annotations

from typing import Any

from torch.nn.modules import module as modules


def hooked(module: Any) -> bool:
    """Whether calling an ``nn.Module`` does more than to run its forward."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or modules._global_forward_hooks
        or modules._global_forward_pre_hooks
        or modules._global_backward_hooks
        or modules._global_backward_pre_hooks
    )
