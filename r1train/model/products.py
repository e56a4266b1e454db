"""Linear layers in float32 on a CPU, by this library's product where PyTorch's is slower.

PyTorch multiplies with MKL, which runs AVX2 code on processors of other makers than Intel: where
these have AVX-512, a product of this library takes about half of the time, forward and backward.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from r1kernels import grouped_mm
from r1kernels.core.native import processor
from r1kernels.hf.bound import Bound

CPUINFO = Path("/proc/cpuinfo")
LEAST_WORK = 1 << 22
"""Multiplications; with fewer, what a call costs outweighs them."""


def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[B, H] and [V, H] → [B, V]: a row comes out the same whatever else is in the batch."""
    one_group = torch.tensor([0, rows.shape[0]], dtype=torch.int32)
    found = grouped_mm(rows, weight[None], one_group)
    return found if bias is None else found + bias


def patch_linear(model: PreTrainedModel) -> None:
    """Makes the linear layers of `model`, if it is on a CPU, multiply so where that is faster.

    Layers whose forward is another function already, and the head, stay as they are.
    """
    if model.device.type != "cpu" or not faster_than_mkl():
        return
    head = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is nn.Linear and module is not head and "forward" not in vars(module):
            module.forward = Bound(linear_forward, module)  # type: ignore[method-assign]


def linear_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    """What `nn.Linear` computes."""
    weight = layer.weight
    small = x.numel() * weight.shape[0] < LEAST_WORK
    if small or weight.dtype != torch.float32 or not weight.is_cpu:
        return F.linear(x, weight, layer.bias)
    rows = x.reshape(-1, x.shape[-1])
    return product(rows, weight, layer.bias).view(*x.shape[:-1], weight.shape[0])


@cache
def faster_than_mkl() -> bool:
    """Whether this library has wider vectors here than MKL takes."""
    wide = processor(torch.device("cpu")).startswith(("avx512", "amx"))
    if not (wide and torch.backends.mkl.is_available() and CPUINFO.exists()):
        return False
    return "AuthenticAMD" in CPUINFO.read_text()
