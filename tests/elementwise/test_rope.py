"""rope against transformers' apply_rotary_pos_emb, bit for bit, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.__main__ import unavailable
from r1kernels.elementwise.rope import ROPE
from tests.roundings import saved_by

BACKENDS = [b for b in ("torch", "cpp") if unavailable(ROPE, b) is None]
BATCH, LENGTH, WIDTH = 2, 11, 48


def side_by_side(table: Tensor) -> Tensor:
    """Each angle of the first half twice."""
    return table[..., : table.shape[-1] // 2].repeat_interleave(2, -1)


# (options of ours, columns of their tables, what ours are made of them by) of families whose
# functions differ.
FAMILIES: dict[str, tuple[dict[str, Any], int, Callable[[Tensor], Tensor]]] = {
    "llama": ({}, WIDTH, torch.clone),
    "qwen3": ({}, WIDTH, torch.clone),
    "phi3": ({}, 32, torch.clone),
    "gpt_oss": ({}, WIDTH // 2, lambda table: table.repeat(1, 1, 2)),
    "glm4": ({"interleaved": True}, 24, side_by_side),
    "cohere": ({"interleaved": True}, WIDTH, Tensor.float),
}


def function_of(family: str) -> Any:
    transformers = pytest.importorskip("transformers")
    module = import_module(f"{transformers.__name__}.models.{family}.modeling_{family}")
    return module.apply_rotary_pos_emb


def tables(batch: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    start = torch.randint(3000, (batch, 1, 1))
    angle = (start + torch.arange(LENGTH)[:, None]) * 10000 ** (-torch.arange(width // 2) / 8)
    angle = torch.cat([angle, angle], -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def states(heads: int, dtype: torch.dtype, layout: str) -> Tensor:
    if layout == "transposed":
        made = torch.randn(BATCH, LENGTH, heads, WIDTH).to(dtype).transpose(1, 2)
    elif layout == "part of one projection":
        made = torch.randn(BATCH, LENGTH, 3 * heads, WIDTH).to(dtype)[:, :, heads : 2 * heads]
        made = made.transpose(1, 2)
    else:
        made = torch.randn(BATCH, heads, LENGTH, WIDTH).to(dtype)
    return made.requires_grad_()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["transposed", "part of one projection", "contiguous"])
@pytest.mark.parametrize("shared", [True, False], ids=["one table", "a table each"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_bit_for_bit_the_function_of_the_family(
    family: str, shared: bool, layout: str, dtype: torch.dtype, backend: str
) -> None:
    torch.manual_seed(0)
    options, width, made = FAMILIES[family]
    theirs = function_of(family)
    q, k = states(4, dtype, layout), states(2, dtype, layout)
    cos, sin = tables(1 if shared else BATCH, width, dtype)
    expected = theirs(q, k, cos, sin)
    with r1kernels.using(backend):
        found = r1kernels.rope(q, k, made(cos), made(sin), **options)
        upstream = [torch.randn_like(out) for out in found]
        slopes = torch.autograd.grad(found, (q, k), upstream)
    for ours, right in zip(found, expected, strict=True):
        assert torch.equal(ours, right)
    for ours, right in zip(slopes, torch.autograd.grad(expected, (q, k), upstream), strict=True):
        assert torch.equal(ours, right)


@pytest.mark.parametrize("layout", ["transposed", "contiguous"])
def test_the_order_in_memory_is_kept(layout: str) -> None:
    q, k = states(4, torch.float32, layout), states(2, torch.float32, layout)
    found = r1kernels.rope(q, k, *tables(1, WIDTH, torch.float32))
    assert [out.stride() for out in found] == [q.stride(), k.stride()]


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradcheck(interleaved: bool) -> None:
    q, k = torch.randn(2, 2, 3, 6).double(), torch.randn(2, 1, 3, 6).double()
    cos, sin = torch.randn(2, 2, 3, 4).double().unbind()
    turn = partial(r1kernels.rope, cos=cos, sin=sin, interleaved=interleaved)
    assert torch.autograd.gradcheck(turn, (q.requires_grad_(), k.requires_grad_()))


def test_there_and_back_is_where_it_was() -> None:
    q, k = states(4, torch.float64, "contiguous"), states(2, torch.float64, "contiguous")
    cos, sin = tables(BATCH, WIDTH, torch.float64)
    for interleaved in (False, True):
        if interleaved:
            cos, sin = side_by_side(cos), side_by_side(sin)
        turned = r1kernels.rope(q, k, cos, sin, interleaved=interleaved)
        for found, before in zip(ROPE(*turned, cos, sin, interleaved, True), (q, k), strict=True):
            torch.testing.assert_close(found, before)


def test_the_backward_pass_keeps_the_tables_alone() -> None:
    q, k = states(4, torch.float32, "transposed"), states(2, torch.float32, "transposed")
    cos, sin = tables(1, WIDTH, torch.float32)
    turned, _ = r1kernels.rope(q, k, cos, sin)
    assert [t.data_ptr() for t in saved_by(turned)] == [cos.data_ptr(), sin.data_ptr()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_of_the_two_may_be_frozen_and_gradients_may_be_expanded(backend: str) -> None:
    q, k = states(4, torch.bfloat16, "transposed"), states(2, torch.bfloat16, "transposed")
    cos, sin = tables(1, WIDTH, torch.bfloat16)
    with r1kernels.using(backend):
        turned, _ = r1kernels.rope(q, k.detach(), cos, sin)
        (slope,) = torch.autograd.grad(turned.sum(), q)
    expected, _ = ROPE.implementations["torch"].run(torch.ones_like(q), k, cos, sin, False, True)
    assert torch.equal(slope, expected)


def test_it_compiles_whole_with_its_gradient() -> None:
    def loss(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned = r1kernels.rope(q, k, cos, sin)
        return turned[0].square().sum() + turned[1].pow(3).sum()

    torch.compiler.reset()
    q, k = states(4, torch.float32, "transposed"), states(2, torch.float32, "transposed")
    given = (q, k, *tables(1, WIDTH, torch.float32))
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for ours, theirs in zip(
        torch.autograd.grad(compiled(*given), (q, k)),
        torch.autograd.grad(loss(*given), (q, k)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (WIDTH + 2, r"rope: cos: expected an even Dr of at most D = 48 .*got \[1, 11, 50\]"),
        (7, r"rope: cos: expected an even Dr"),
    ],
)
def test_tables_of_another_width_are_refused(width: int, message: str) -> None:
    q, k = states(4, torch.float32, "transposed"), states(2, torch.float32, "transposed")
    with pytest.raises(ValueError, match=message):
        r1kernels.rope(q, k, torch.ones(1, LENGTH, width), torch.ones(1, LENGTH, width))


def test_positions_of_another_length_are_refused() -> None:
    q, k = states(4, torch.float32, "transposed"), states(2, torch.float32, "transposed")
    with pytest.raises(ValueError, match=r"rope: cos: expected S = 11 .*S is that of q"):
        r1kernels.rope(q, k, torch.ones(1, 12, 8), torch.ones(1, 12, 8))
