"""The task of FP8 linear layers: from bf16 activations to bf16 results, quantizing included.

Weights come as a layer has them: quantized once after each optimizer step, not in the task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import r1kernels
from r1kernels import FP8Tensor
from r1kernels.fp8 import format as fp8_format


class Task(NamedTuple):
    """``inputs``: (x [M, K], weights [N, K]). ``exact``: the truth is asked for, unquantized."""

    inputs: tuple[Tensor, ...]
    quantized: tuple[FP8Tensor, ...]  # the weights, in blocks of 128 × 128
    one_scale: tuple[tuple[Tensor, Tensor], ...]  # again, as PyTorch's own product takes them
    upstream: Tensor  # [M, N]
    exact: bool


Run = Callable[[Task], Tensor]


class Scenario(NamedTuple):
    """One layer, or a stack of square ones, at one size; see ``whole.Scenario``."""

    name: str
    rows: int
    columns: int
    depth: int
    forward: bool = True  # alone, as in generation
    kind: str = "linear"
    dtype: torch.dtype = torch.bfloat16
    peers: tuple[str, ...] | None = None
    yardstick: str = "eager"
    layers: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows, self.columns, self.depth

    def describe(self) -> str:
        sizes = zip("MNK", self.shape, strict=True)
        return f"{self.name}: " + " × ".join(f"{name} {size}" for name, size in sizes)

    @property
    def flops(self) -> float:
        passes = self.layers * (1 if self.forward else 3)
        return passes * 2.0 * self.rows * self.columns * self.depth

    @property
    def bytes(self) -> float:
        """Least traffic: bf16 in and out, the weight in FP8, its gradient in bf16."""
        rows = 2.0 * self.rows * (self.columns + self.depth)
        weight = float(self.columns * self.depth)
        return self.layers * (rows + weight if self.forward else 2 * rows + 4 * weight)

    @property
    def exact_dtype(self) -> torch.dtype:
        return torch.float32

    def make(self, device: str, dtype: torch.dtype | None = None) -> Task:
        """The task in ``dtype`` (default: the scenario's); the values are the same in all."""
        rng = torch.Generator(device).manual_seed(self.rows)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=rng, device=device).mul_(scale)
            return values.to(self.dtype).to(dtype or self.dtype)

        x = normal(self.rows, self.depth)
        shape, scale = (self.columns, self.depth), self.depth**-0.5
        weights = [normal(*shape, scale=scale) for _ in range(self.layers)]
        upstream = normal(self.rows, self.columns)
        square = (fp8_format.BLOCK, fp8_format.BLOCK)
        quantized = tuple(r1kernels.fp8_quantize(w, block=square) for w in weights)
        inputs = (x, *weights)
        if not self.forward:
            for tensor in inputs:
                tensor.requires_grad_()
        return Task(inputs, quantized, tuple(map(one_scale, weights)), upstream, dtype is not None)


@torch.no_grad()
def one_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and the one scale of all."""
    scale = fp8_format.scale_of(x.abs().amax().float(), power_of_two=False)
    return (x / scale).to(fp8_format.E4M3), scale


def linear(task: Task) -> Tensor:
    x, *weights = task.inputs
    for weight, quantized in zip(weights, task.quantized, strict=True):
        x = r1kernels.fp8_linear(x, weight, quantized)
    return x


class _Eager(torch.autograd.Function):
    """The recipe in plain PyTorch: what is quantized is decoded at once, then multiplied."""

    @staticmethod
    def forward(ctx: object, x: Tensor, weight: Tensor, decoded: Tensor) -> Tensor:
        ctx.save_for_backward(x, decoded)  # type: ignore[attr-defined]
        return _rounded(x) @ decoded.T

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, decoded = ctx.saved_tensors  # type: ignore[attr-defined]
        return _rounded(grad) @ decoded, _rounded(grad.T) @ _rounded(x.T).T, None


def _rounded(x: Tensor) -> Tensor:
    """Through FP8 in blocks of 1 × 128 and back."""
    codes, scale = fp8_format.quantize_blocks(x.float()[None], 1, fp8_format.BLOCK, False)
    return fp8_format.decode(codes, scale)[0].to(x.dtype)


def eager(task: Task) -> Tensor:
    if task.exact:
        return bf16(task)
    x, *weights = task.inputs
    for weight, quantized in zip(weights, task.quantized, strict=True):
        x = _Eager.apply(x, weight, fp8_format.decode(*quantized[:2]).to(x.dtype))
    return x


def bf16(task: Task) -> Tensor:
    x, *weights = task.inputs
    for weight in weights:
        x = F.linear(x, weight)
    return x


def scaled_mm(task: Task) -> Tensor:
    """PyTorch's own FP8 product, one scale for each tensor; no gradient."""
    x = task.inputs[0]
    for right, of_right in task.one_scale:
        codes, scale = one_scale(x)
        scales = {"scale_a": scale, "scale_b": of_right}
        x = torch._scaled_mm(codes, right.T, **scales, out_dtype=torch.bfloat16)
    return x


OURS: dict[str, Run] = {"linear": linear}
PEERS: dict[str, Run] = {"eager": eager, "bf16": bf16, "torch._scaled_mm": scaled_mm}
