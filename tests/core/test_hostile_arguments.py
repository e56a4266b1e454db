"""Arguments that fit no op: an error, or a right result, and never memory that is nobody's.

``make test-sanitize`` runs this with every access checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.__main__ import unavailable
from r1kernels.core.op import OPS, Op
from r1kernels.testing.compare import as_tuple

EXTREMES = (0, -1, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63))
REFUSALS = (ValueError, TypeError, RuntimeError, IndexError)  # the last two: PyTorch's own
PURE = [op for op in OPS.values() if not op.overload._schema.is_mutable]
BACKENDS = [(op, backend) for op in PURE for backend in ("torch", "cpp")]
IDS = [f"{op.name}-{backend}" for op, backend in BACKENDS]


def hostile(arg: Any) -> Iterator[Any]:
    """What may stand in the place of one argument."""
    if isinstance(arg, bool) or arg is None or isinstance(arg, str):
        return
    if isinstance(arg, int):
        yield from EXTREMES
    if not isinstance(arg, Tensor):
        return
    for dim in range(arg.dim()):
        yield arg.narrow(dim, 0, 0)
        yield arg.narrow(dim, 0, max(arg.shape[dim] - 1, 0))
    yield arg.new_zeros(())
    if arg.dtype in (torch.int32, torch.int64) and arg.numel():
        for value in EXTREMES:
            if torch.iinfo(arg.dtype).min <= value <= torch.iinfo(arg.dtype).max:
                for at in (0, -1):
                    wrong = arg.clone()
                    wrong.view(-1)[at] = value
                    yield wrong


@pytest.mark.parametrize(("op", "backend"), BACKENDS, ids=IDS)
def test_one_wrong_argument_is_an_error_or_a_result(op: Op, backend: str) -> None:
    if (reason := unavailable(op, backend)) is not None:
        pytest.skip(reason)
    args = next(case for case in op.cases if not case.bench).make("cpu")
    calls = 0
    with op.using(backend):
        for at, arg in enumerate(args):
            for wrong in hostile(arg):
                calls += 1
                try:
                    outputs = as_tuple(op(*args[:at], wrong, *args[at + 1 :]))
                except REFUSALS:
                    continue
                assert all(isinstance(output, Tensor) for output in outputs)
    assert calls > 0


@pytest.mark.parametrize("op", PURE, ids=lambda op: op.name)
def test_a_tensor_on_another_device_is_an_error(op: Op) -> None:
    """On "meta" PyTorch would run the op's fake, and give uninitialised memory back."""
    args = next(case for case in op.cases if not case.bench).make("cpu")
    tensors = [at for at, arg in enumerate(args) if isinstance(arg, Tensor)]
    if len(tensors) == 1:
        pytest.skip("it takes one tensor")
    for at in tensors:
        given = [*args[:at], args[at].to("meta"), *args[at + 1 :]]
        with pytest.raises(ValueError, match=f"{op.name}: expected tensors on one device"):
            op(*given)


def head(rows: int, width: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(rows, width).requires_grad_(),
        torch.randn(columns, width).requires_grad_(),
        torch.zeros(rows, dtype=torch.int64),
    )


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "entropy": True}], ids=str)
def test_a_vocabulary_of_nothing_is_an_error(rows: int, options: dict[str, Any]) -> None:
    hidden, weight, target = head(rows, 4, 0)
    bias = torch.zeros(0).requires_grad_()
    calls: tuple[Callable[[], Any], ...] = (
        lambda: r1kernels.linear_logprob(hidden, weight, target, bias=bias, **options),
        lambda: r1kernels.logprob(hidden @ weight.T, target, **options),
    )
    for call in calls:
        with pytest.raises(ValueError, match="expected V ≥ 1"):
            call()


def experts(tokens: int, width: int, inner: int, count: int, dtype: torch.dtype) -> list[Tensor]:
    return [
        torch.randn(*size, dtype=dtype).requires_grad_()
        for size in ((tokens, width), (count, 2 * inner, width), (count, width, inner))
    ]


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(0, 8, 4), (5, 0, 4), (5, 8, 0), (5, 0, 0), (0, 0, 0)], ids=str)
def test_experts_without_tokens_or_width_have_gradients_of_their_shapes(
    sizes: tuple[int, int, int], dtype: torch.dtype, backend: str
) -> None:
    x, gate_up, down = experts(*sizes, 3, dtype)
    routing = r1kernels.Routing.of(
        torch.ones(sizes[0], 2), torch.arange(2 * sizes[0]).view(-1, 2) % 3, 3
    )
    if unavailable(OPS["moe_experts"], backend) is not None:
        pytest.skip("not built")
    with r1kernels.using(backend):
        y = r1kernels.moe_experts(x, gate_up, down, routing)
        y.float().sum().backward()
    assert y.shape == x.shape
    for tensor in (x, gate_up, down):
        assert tensor.grad is not None
        assert not tensor.grad.any()


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("offsets", lambda t: t.to("meta"), "routing.offsets: expected a tensor on cpu"),
        ("offsets", lambda t: t.long(), "routing.offsets: expected dtype int32"),
        ("offsets", lambda t: t[:-1], "routing: expected one of E = 3 experts"),
        ("offsets", lambda t: t + 100, "offsets: expected"),
        ("offsets", lambda t: t.flip(0), "offsets: expected"),
        ("gather", lambda t: t.to("meta"), "routing.gather: expected a tensor on cpu"),
        ("gather", lambda t: t + 1000, "gather"),
        ("inverse", lambda t: t.to("meta"), "routing.inverse: expected a tensor on cpu"),
        ("inverse", lambda t: t + 1000, "inverse"),
        ("weights", lambda t: t.to("meta"), "routing.weights: expected a tensor on cpu"),
    ],
)
def test_a_routing_of_other_tokens_or_another_device_is_an_error(
    field: str, wrong: Callable[[Tensor], Tensor], message: str
) -> None:
    x, gate_up, down = experts(5, 8, 4, 3, torch.float32)
    routing = r1kernels.Routing.of(torch.ones(5, 2), torch.arange(10).view(5, 2) % 3, 3)
    routing = routing._replace(**{field: wrong(getattr(routing, field))})
    with (
        pytest.raises(ValueError, match=message)
        if "dtype" not in message
        else pytest.raises(TypeError, match=message)
    ):
        r1kernels.moe_experts(x, gate_up, down, routing)


@pytest.mark.parametrize(
    ("experts", "align"),
    [(8, 2**62), (8, 2**63 - 1), (8, 10**6), (10**6, 10**6), (2**62, 1), (0, 1), (8, 0), (8, -5)],
)
def test_padding_that_no_memory_holds_is_refused_before_it_is_made(
    experts: int, align: int
) -> None:
    ids = torch.zeros(3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"moe_sort: (num_experts|align): expected "):
        r1kernels.moe_sort(ids, experts, align=align)
    with pytest.raises(ValueError, match=r"moe_sort: (num_experts|align): expected "):
        OPS["moe_sort"](ids, experts, align)


INTEGERS = [torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ids", INTEGERS, ids=str)
@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
def test_token_0_is_a_token_whatever_the_width_of_the_targets(
    backend: str, ids: torch.dtype, dtype: torch.dtype
) -> None:
    """The low 32 bits of the constant that stands for "ignore nothing" are 0."""
    if unavailable(OPS["linear_logprob"], backend) is not None:
        pytest.skip("not here")
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 16, generator=rng).to(dtype).requires_grad_()
    weight = torch.randn(12, 16, generator=rng).to(dtype).requires_grad_()
    target = torch.tensor([0, 3, 0, 11], dtype=ids)
    every = torch.arange(12, dtype=ids).repeat(4)
    offsets = torch.arange(5, dtype=ids) * 12
    expected = (hidden.double() @ weight.double().T).log_softmax(-1)[range(4), target.long()]
    calls: tuple[Callable[[], Tensor], ...] = (
        lambda: r1kernels.logprob(hidden @ weight.T, target).logprob,
        lambda: r1kernels.linear_logprob(hidden, weight, target).logprob,
        lambda: r1kernels.linear_logprob(hidden, weight.detach(), target).logprob,
        lambda: -r1kernels.linear_cross_entropy(hidden, weight, target, reduction="none"),
        lambda: (
            -r1kernels.linear_cross_entropy(
                hidden, weight, target, reduction="none", ignore_index=2**32
            )
        ),
        lambda: (
            r1kernels.linear_logprob(
                hidden, weight, target, candidate_ids=every, candidate_offsets=offsets
            ).logprob
        ),
    )
    for call in calls:
        try:
            with r1kernels.using(backend):
                found = call()
                (gradient,) = torch.autograd.grad(found.sum(), hidden)
        except RuntimeError as error:
            if "pinned to backend" not in str(error):
                raise
            continue  # this backend has no kernel for this dtype
        assert torch.allclose(found.double(), expected, atol=0.1 if dtype.itemsize == 2 else 1e-4)
        assert gradient.abs().sum(1).min() > 0


@pytest.mark.parametrize("ids", [torch.uint8, torch.int16, torch.int8], ids=str)
def test_narrower_targets_are_refused_by_name(ids: torch.dtype) -> None:
    hidden, weight, _ = head(3, 4, 5)
    target = torch.zeros(3, dtype=ids)
    for call in (
        lambda: r1kernels.linear_logprob(hidden, weight, target),
        lambda: r1kernels.logprob(hidden @ weight.T, target),
        lambda: r1kernels.linear_cross_entropy(hidden, weight, target),
    ):
        with pytest.raises(TypeError, match="target: expected dtype int64 or int32"):
            call()


def test_an_ignore_index_beyond_64_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="ignore_index: expected an integer of 64 bits"):
        r1kernels.linear_cross_entropy(*head(3, 4, 5), ignore_index=2**64)
