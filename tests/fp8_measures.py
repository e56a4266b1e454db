"""What tests of FP8 layers share: the recipe's measure of an error, codes, what autograd keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import r1kernels
from r1kernels import FP8Tensor


def difference(x: Tensor, y: Tensor) -> float:
    """1 − 2⟨x, y⟩/(‖x‖² + ‖y‖²): half the squared error relative to the values."""
    x, y = x.detach().double().flatten(), y.detach().double().flatten()
    return float(1 - 2 * (x @ y) / (x @ x + y @ y))


def squares(weight: Tensor, scale_format: str = "float") -> FP8Tensor:
    return r1kernels.fp8_quantize(weight.detach(), block=(128, 128), scale_format=scale_format)


def saved_bytes(run: Callable[[], object], besides: Sequence[Tensor] = ()) -> int:
    """Bytes of all that autograd keeps of ``run`` for the backward pass, each tensor once."""
    known = {tensor.data_ptr() for tensor in besides}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()
    del kept
    return sum(sizes.values())
