"""Under torch.autocast a function with a product casts what it multiplies, as F.linear does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import r1kernels
from r1kernels.core.op import OPS
from tests.fp8_measures import squares

T, H, V, E, INNER = 12, 16, 40, 4, 8
STARTS = torch.tensor([0, 5, T], dtype=torch.int32)


def tokens() -> Tensor:
    return torch.randint(V, (T,), generator=torch.Generator().manual_seed(1))


def routing(x: Tensor) -> r1kernels.Routing:
    logits = torch.randn(T, E, generator=torch.Generator().manual_seed(2))
    return r1kernels.moe_route(logits.double() if x.dtype == torch.float64 else logits, 2)


def group_offsets() -> Tensor:
    return torch.tensor([0, 3, 3, 8, T], dtype=torch.int32)


def head(function: Callable[..., Any], **options: Any) -> Callable[..., Tensor]:
    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        found = function(hidden, weight, tokens(), bias=bias, **options)
        return found if isinstance(found, Tensor) else found[0]

    return run


def policy_loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return r1kernels.fused_linear_grpo_loss(
        hidden, weight, tokens(), bias=bias, cu_seqlens=STARTS,
        advantages=torch.tensor([1.0, -1.0], dtype=dtype),
    ).loss  # fmt: skip


def candidate_logprob(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    kept = r1kernels.candidates(torch.zeros(T, V), target=tokens())
    return r1kernels.linear_logprob(
        hidden, weight, tokens(), bias=bias,
        candidate_ids=kept.ids, candidate_offsets=kept.offsets,
    ).logprob  # fmt: skip


def biased_experts(x: Tensor, gate_up: Tensor, down: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return r1kernels.moe_experts(
        x, gate_up, down, routing(x), activation=lambda h: h.chunk(2, -1)[0].relu(),
        gate_up_bias=a, down_bias=b,
    )  # fmt: skip


def reverse_kl(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    teacher = [torch.randn(n, 9, generator=rng).bfloat16() for n in (T, V)]
    return r1kernels.linear_reverse_kl(hidden, weight, *teacher, bias=bias).kl


HEAD = ((T, H), (V, H), (V,))
EXPERTS = ((T, H), (E, 2 * INNER, H), (E, H, INNER))
# Of each function: a call of it, the shapes of what autocast casts.
CALLS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "linear_logprob": (head(r1kernels.linear_logprob), HEAD),
    "linear_logprob, entropy": (head(r1kernels.linear_logprob, entropy=True), HEAD),
    "linear_logprob, candidates": (candidate_logprob, HEAD),
    "linear_cross_entropy": (head(r1kernels.linear_cross_entropy), HEAD),
    "linear_reverse_kl": (reverse_kl, HEAD),
    "fused_linear_grpo_loss": (policy_loss, HEAD),
    "fused_linear_loss": (head(r1kernels.fused_linear_loss, loss_fn=lambda x: x.sum()), HEAD),
    "grouped_mm": (
        lambda x, weight: r1kernels.grouped_mm(x, weight, group_offsets()),
        ((T, H), (E, 9, H)),
    ),
    "packed_attention": (
        lambda *given: r1kernels.packed_attention(*given, torch.tensor([0, 5, T]).int()),
        ((T, 4, H), (T, 2, H), (T, 2, E)),
    ),
    "moe_experts": (lambda *given: r1kernels.moe_experts(*given, routing(given[0])), EXPERTS),
    "moe_experts, biases": (biased_experts, (*EXPERTS, (E, 2 * INNER), (E, H))),
}
DTYPES = {
    "hidden bfloat16, weights float32": (torch.bfloat16, torch.float32),
    "hidden float32, weights bfloat16": (torch.float32, torch.bfloat16),
    "all float32": (torch.float32, torch.float32),
}


def leaves(
    shapes: tuple[tuple[int, ...], ...], first: torch.dtype, others: torch.dtype
) -> list[Tensor]:
    dtypes = [first, *[others] * (len(shapes) - 1)]
    made = (torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    return [leaf.requires_grad_() for leaf in made]


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_casts_as_a_linear_layer_does(name: str, dtypes: str) -> None:
    """The same bits as from bfloat16 copies; gradients in the dtypes of what was given."""
    run, shapes = CALLS[name]
    given = leaves(shapes, *DTYPES[dtypes])
    copies = [leaf.detach().bfloat16().requires_grad_() for leaf in given]
    with torch.autocast("cpu", torch.bfloat16):
        got = run(*given)
    expected = run(*copies)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)
    got.sum().backward()
    expected.sum().backward()
    for leaf, copy in zip(given, copies, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.dtype == leaf.dtype
        assert torch.equal(leaf.grad, copy.grad.to(leaf.dtype))


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["linear_logprob", "moe_experts"])
def test_what_is_sharded_casts_too(name: str, group: dist.ProcessGroup) -> None:
    """Shards of one rank, which is the whole."""
    run, shapes = CALLS[name]
    given = leaves(shapes, torch.bfloat16, torch.float32)
    sharded = head(r1kernels.linear_logprob, tp_group=group)
    if name == "moe_experts":
        sharded = lambda *x: r1kernels.moe_experts_parallel(*x, routing(x[0]), group=group)  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = sharded(*given), run(*given)
        assert torch.equal(got, expected)
    for one, other in zip(
        torch.autograd.grad(got.sum(), given), torch.autograd.grad(expected.sum(), given),
        strict=True,
    ):  # fmt: skip
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", CALLS)
def test_float64_stays_what_it_is(name: str) -> None:
    run, shapes = CALLS[name]
    given = leaves(shapes, torch.float64, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(*given)
    assert got.dtype == torch.float64
    assert torch.equal(got, run(*given))


def test_so_does_linear() -> None:
    x, weight = leaves(((T, H), (V, H)), torch.bfloat16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(x, weight).dtype == torch.bfloat16
        assert F.linear(x.double(), weight.double()).dtype == torch.float64


def test_ops_compute_in_the_dtypes_they_are_given() -> None:
    """A reference's products are PyTorch's own, which autocast would reach from outside."""
    given = OPS["grouped_mm"].cases[0].make("cpu")
    x, weight = (leaf.float().requires_grad_() for leaf in given[:2])
    with r1kernels.using("torch"):
        expected = OPS["grouped_mm"](x, weight, *given[2:])
        gradients = torch.autograd.grad(expected.sum(), (x, weight))
        with torch.autocast("cpu", torch.bfloat16):
            got = OPS["grouped_mm"](x, weight, *given[2:])
            inside = torch.autograd.grad(got.sum(), (x, weight), retain_graph=True)
        outside = torch.autograd.grad(got.sum(), (x, weight))
    assert torch.equal(got, expected)
    for found in inside, outside:
        for one, other in zip(found, gradients, strict=True):
            assert torch.equal(one, other)


def test_fp8_takes_its_input_in_the_dtype_of_autocast() -> None:
    x, weight = leaves(((T, H), (V, H)), torch.float32, torch.float32)
    codes = squares(weight)
    with torch.autocast("cpu", torch.bfloat16):
        got = r1kernels.fp8_linear(x, weight, codes)
    got.sum().backward()
    expected = r1kernels.fp8_linear(x.bfloat16(), weight, codes)
    assert torch.equal(got, expected)
    assert x.grad is not None
    assert x.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["linear_logprob", "fused_linear_grpo_loss", "moe_experts"])
def test_compiles_under_autocast(name: str) -> None:
    run, shapes = CALLS[name]
    given = leaves(shapes, torch.bfloat16, torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(run, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(*given), run(*given))


def test_without_autocast_two_dtypes_are_an_error() -> None:
    hidden, weight = torch.randn(T, H).bfloat16(), torch.randn(V, H)
    with pytest.raises(TypeError, match=r"weight: expected dtype bfloat16, got float32 \(\.to"):
        r1kernels.linear_logprob(hidden, weight, tokens())
