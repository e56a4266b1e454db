"""``torch.autocast``, which knows PyTorch's own functions only: the same for ours.

Functions with matrix products cast what they multiply, as ``F.linear`` does, and gradients come
back in the dtypes that the parameters have. Ops compute in the dtypes that they are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def enabled(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)


def cast(*tensors: Any) -> tuple[Any, ...]:
    """Each tensor in the dtype in which autocast would multiply it; all others as they are.

    As in PyTorch, float64 stays what it is. What is no tensor is left for others to complain about.
    """
    if not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():
        return tensors
    return tuple(_cast(tensor) for tensor in tensors)


def _cast(tensor: Any) -> Any:
    if not isinstance(tensor, Tensor) or not enabled(tensor.device.type):
        return tensor
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def without(run: Callable[..., Any], device: str) -> Callable[..., Any]:
    """``run`` as it is without autocast, which would cast the products inside of it."""

    def outside(*args: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return run(*args)

    return outside
