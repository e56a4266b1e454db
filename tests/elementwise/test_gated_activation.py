"""swiglu and geglu against the feed-forward layers of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.__main__ import unavailable
from r1kernels.elementwise.gated_activation import GATED_ACTIVATION
from tests.roundings import assert_same_but_last_bits, saved_by

BACKENDS = [b for b in ("torch", "cpp") if unavailable(GATED_ACTIVATION, b) is None]


def exact_geglu(gate: Tensor, up: Tensor) -> Tensor:
    return r1kernels.geglu(gate, up, approximate="none")


# What transformers calls the activation, and the function that says the same.
ACTIVATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": r1kernels.swiglu,
    "gelu_pytorch_tanh": r1kernels.geglu,
    "gelu": exact_geglu,
}


def inputs(layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    if layout == "halves":
        gate, up = (3 * torch.randn(3, 17, 2 * 141)).to(dtype).chunk(2, -1)
    else:
        gate, up = (3 * torch.randn(2, 3, 17, 144)).to(dtype).unbind()
    return gate.requires_grad_(), up.requires_grad_()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["apart", "halves"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_it_is_the_activation_of_the_model(
    name: str, layout: str, dtype: torch.dtype, backend: str
) -> None:
    """The reference bit for bit; kernels but for the last bits of their exponentials.

    Far below 0, PyTorch's 1 + tanh and 1 + erf cancel, so that the last bits of what is near 0 are
    noise there.
    """
    activations = pytest.importorskip("transformers.activations")
    gate, up = inputs(layout, dtype)
    expected = activations.ACT2FN[name](gate) * up
    with r1kernels.using(backend):
        found = ACTIVATIONS[name](gate, up)
        upstream = torch.randn_like(found)
        slopes = torch.autograd.grad(found, (gate, up), upstream)
    right = torch.autograd.grad(expected, (gate, up), upstream)
    for ours, theirs in zip((found, *slopes), (expected, *right), strict=True):
        if backend == "torch":
            assert torch.equal(ours, theirs)
        open_gate = gate > -2
        assert_same_but_last_bits(ours[open_gate], theirs[open_gate])
        assert_same_but_last_bits(ours, theirs, moved=0.002 if name == "silu" else 0.2)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradcheck(name: str) -> None:
    gate, up = torch.randn(2, 3, 5, dtype=torch.float64).unbind()
    assert torch.autograd.gradcheck(ACTIVATIONS[name], (gate.requires_grad_(), up.requires_grad_()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_far_from_zero_it_is_the_gate_or_nothing(name: str, backend: str) -> None:
    gate = torch.tensor([-1000.0, -90.0, -30.0, 0.0, 30.0, 90.0, 1000.0])
    exact = ACTIVATIONS[name](gate.double(), torch.ones(7).double())
    with r1kernels.using(backend):
        found = ACTIVATIONS[name](gate.requires_grad_(), torch.ones(7))
        (slope,) = torch.autograd.grad(found.sum(), gate)
    torch.testing.assert_close(found.double(), exact, atol=1e-11, rtol=1e-6)
    torch.testing.assert_close(
        slope, torch.tensor([0.0, 0, 0, 0.5, 1, 1, 1]), atol=1e-11, rtol=1e-6
    )


def test_the_backward_pass_keeps_its_inputs_alone() -> None:
    gate, up = inputs("halves", torch.float32)
    kept = saved_by(r1kernels.swiglu(gate, up))
    assert [t.data_ptr() for t in kept] == [gate.data_ptr(), up.data_ptr()]


def test_it_compiles_whole_with_its_gradient() -> None:
    def loss(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, -1)
        return r1kernels.swiglu(gate, up).sum() + r1kernels.geglu(gate, up).sum()

    torch.compiler.reset()
    both = torch.randn(3, 5, 16).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    ours, theirs = (torch.autograd.grad(each(both), both)[0] for each in (compiled, loss))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_stays_where_it_is(backend: str) -> None:
    gate, up = inputs("apart", torch.bfloat16)
    gate.data[1, 2, 3] = torch.nan
    up.data[0, 4, 5] = torch.nan
    with r1kernels.using(backend):
        found = r1kernels.swiglu(gate, up)
        slopes = torch.autograd.grad(found.sum(), (gate, up))
    expected: Any = [gate.isnan() | up.isnan()] * 2 + [gate.isnan()]
    for each, where in zip((found, *slopes), expected, strict=True):
        assert torch.equal(each.isnan(), where)


def test_what_is_said_of_wrong_arguments() -> None:
    gate = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"swiglu: up: expected I = 4 in shape \[N1, I\]"):
        r1kernels.swiglu(gate, torch.ones(2, 5))
    with pytest.raises(TypeError, match="geglu: up: expected dtype float32, got bfloat16"):
        r1kernels.geglu(gate, gate.bfloat16())
    with pytest.raises(
        ValueError, match="geglu: approximate: expected one of tanh, none; got 'erf'"
    ):
        r1kernels.geglu(gate, gate, approximate="erf")
