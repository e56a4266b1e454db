"""SwiGLU and GeGLU: a gate's activation times what it lets through, in the models' roundings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered

GELU = {"gelu": "none", "gelu_tanh": "tanh"}  # what PyTorch calls their approximation


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate)·up, with silu(g) = g/(1 + exp(−g)).

    Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202. The activation is made in float32
    (float64 for float64) and rounded to the dtype, and so is the product, as modules of
    transformers do; the backward pass keeps nothing but the inputs.

    Args:
        gate: […, I], float32, bfloat16, float16 or float64; may be half of a tensor [..., 2I].
        up: […, I], dtype of gate.

    Returns:
        […, I], dtype of gate. Gradients flow to both.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    _check("swiglu", gate, up)
    return GATED_ACTIVATION(gate, up, "silu")


def geglu(gate: Tensor, up: Tensor, *, approximate: str = "tanh") -> Tensor:
    """gelu(gate)·up (Gemma), otherwise as ``swiglu``.

    Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv 1606.08415.

    Args:
        gate: […, I], float32, bfloat16, float16 or float64; may be half of a tensor [..., 2I].
        up: […, I], dtype of gate.
        approximate: "tanh": g/2·(1 + tanh(√(2/π)·(g + 0.044715·g³))); "none": g·Φ(g), by erf.

    Returns:
        […, I], dtype of gate. Gradients flow to both.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    check.choice("geglu", "approximate", approximate, ("tanh", "none"))
    _check("geglu", gate, up)
    return GATED_ACTIVATION(gate, up, "gelu_tanh" if approximate == "tanh" else "gelu")


@remembered
def _check(caller: str, gate: Tensor, up: Tensor) -> None:
    shapes = check.Shapes(caller)
    rows = check.leading(gate, "I")
    shapes("gate", gate, rows, check.FLOATS)
    shapes("up", up, rows, (gate.dtype,))


def activated(gate: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return F.silu(gate)
    return F.gelu(gate, approximate=GELU[activation])


def reference(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return (activated(gate, activation) * up).contiguous()


def _fake(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return gate.new_empty(gate.shape)


def _save(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.activation = inputs.activation
    ctx.save_for_backward(inputs.gate, inputs.up)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    dgate, dup = GATED_ACTIVATION_BACKWARD(dy, *ctx.saved_tensors, ctx.activation)
    return GATED_ACTIVATION.gradients(gate=dgate, up=dup)


def backward_reference(
    dy: Tensor, gate: Tensor, up: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """dgate = act'(gate)·(dy·up), dy·up being rounded; dup = dy·act(gate)."""
    through = dy * up
    if activation == "silu":
        dgate = torch.ops.aten.silu_backward(through, gate)
    else:
        dgate = torch.ops.aten.gelu_backward(through, gate, approximate=GELU[activation])
    return dgate.contiguous(), (dy * activated(gate, activation)).contiguous()


def _backward_fake(dy: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _case(
    name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16,
    activation: str = "silu", *, halves: bool = False, bench: bool | str = False,
) -> Case:  # fmt: skip
    size = torch.Size(shape).numel()

    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(size)
        if halves:
            both = torch.randn(*shape[:-1], 2 * shape[-1], generator=rng).mul_(2)
            return *both.to(device, dtype).chunk(2, -1), activation
        gate, up = torch.randn(2, *shape, generator=rng).mul_(2).to(device, dtype)
        return gate, up, activation

    return Case(name, make, flops=6.0 * size, bytes=3.0 * dtype.itemsize * size, bench=bench)


CASES = (
    _case("bf16", (37, 256)),
    _case("fp32", (3, 11, 96), torch.float32),
    _case("halves", (3, 11, 96), halves=True),
    _case("halves, fp32, odd width", (21, 141), torch.float32, halves=True),
    _case("odd width", (21, 141)),
    _case("gelu, tanh", (37, 128), activation="gelu_tanh"),
    _case("gelu, tanh, fp32", (21, 67), torch.float32, "gelu_tanh"),
    _case("gelu", (37, 128), activation="gelu"),
    _case("gelu, fp32", (21, 67), torch.float32, "gelu"),
    _case("fp16", (9, 96), torch.float16),
    _case("one vector", (100,)),
    _case("no rows", (0, 64)),
    _case("T 2048, I 8192", (2048, 8192), bench="cpu"),
    _case("T 2048, I 8192, fp32", (2048, 8192), torch.float32, bench="cpu"),
    _case("T 2048, I 8192, gelu, tanh", (2048, 8192), activation="gelu_tanh", bench="cpu"),
    _case("T 16384, I 14336", (16384, 14336), bench="cuda"),
    _case("T 16384, I 14336, gelu, tanh", (16384, 14336), activation="gelu_tanh", bench="cuda"),
)


def _backward_case(case: Case) -> Case:
    def make(device: str) -> tuple[Any, ...]:
        gate, up, activation = case.make(device)
        rng = torch.Generator().manual_seed(1)
        return torch.randn(gate.shape, generator=rng).to(gate), gate, up, activation

    return Case(case.name, make, flops=2 * case.flops, bytes=case.bytes * 5 / 3, bench=case.bench)


GATED_ACTIVATION = Op(
    "gated_activation(Tensor gate, Tensor up, str activation) -> Tensor",
    reference=reference,
    fake=_fake,
    save=_save,
    backward=_backward,
    cases=CASES,
    triton="r1kernels.elementwise.triton.gated_activation",
)
GATED_ACTIVATION_BACKWARD = Op(
    "gated_activation_backward(Tensor dy, Tensor gate, Tensor up, str activation) "
    "-> (Tensor dgate, Tensor dup)",
    reference=backward_reference,
    fake=_backward_fake,
    cases=tuple(_backward_case(case) for case in CASES),
    triton="r1kernels.elementwise.triton.gated_activation",
)
