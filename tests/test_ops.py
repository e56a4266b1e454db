"""Every op × every backend that runs here × every case: the contract of architecture.md.

An op that is declared, or a backend that is plugged in, is tested here without another line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import r1kernels
from r1kernels import triton
from r1kernels.__main__ import unavailable
from r1kernels.op import OPS, PREFERENCE, Case, Op
from r1kernels.ops.head import LogProb
from r1kernels.testing.compare import Truth, as_tuple, bitwise_problems
from r1kernels.testing.poison import poisoned
from tests import instruction_sets

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
BACKENDS = {device: ("torch", *PREFERENCE[device]) for device in DEVICES}
if triton.INTERPRETED:
    BACKENDS["cpu"] += ("triton",)


class Variant(NamedTuple):
    """An implementation of an op: a backend and, for C++, an instruction set."""

    device: str
    op: Op
    backend: str
    isa: str = ""

    def __str__(self) -> str:
        name = f"{self.op.name}-{self.backend}" + (f"-{self.isa}" if self.isa else "")
        return f"{name}-{self.device}"

    @contextmanager
    def active(self) -> Iterator[Callable[..., tuple[Tensor, ...]]]:
        """A function that runs this variant, or skips the test when it cannot take the case."""

        def run(*args: Any) -> tuple[Tensor, ...]:
            able = self.op.backends[self.backend].when(*args)
            if able is not True:
                pytest.skip(f"{self.backend}: {able}")
            return as_tuple(self.op(*args))

        with self.op.using(self.backend):
            if not self.isa:
                yield run
                return
            torch.ops.r1_cpp.limit_isa(self.isa)
            try:
                yield run
            finally:
                torch.ops.r1_cpp.limit_isa("")


VARIANTS = [
    Variant(device, op, backend)
    for device in DEVICES
    for op in OPS.values()
    if not op.overload._schema.is_mutable  # it would change the arguments that these tests share
    for backend in BACKENDS[device]
    if unavailable(op, backend) is None
]
ISA_VARIANTS = [
    variant._replace(isa=isa)
    for variant in VARIANTS
    if variant.backend == "cpp"
    for isa in instruction_sets.here()[:-1]  # the last one is what runs anyway
]


def with_cases(variants: list[Variant]) -> pytest.MarkDecorator:
    pairs = [(variant, case) for variant in variants for case in small_cases(variant.op)]
    ids = [f"{variant}-{case.name}" for variant, case in pairs]
    return pytest.mark.parametrize(("variant", "case"), pairs, ids=ids)


def small_cases(op: Op) -> list[Case]:
    return [case for case in op.cases if not case.bench]


@cache
def truth(op: Op, case: Case, device: str) -> Truth:
    return Truth(op, case, case.make(device))


@with_cases(VARIANTS + ISA_VARIANTS)
def test_equals_the_reference_and_never_reads_uninitialised_memory(
    variant: Variant, case: Case
) -> None:
    args = case.make(variant.device)
    with variant.active() as run, poisoned():
        parity = truth(variant.op, case, variant.device).check(str(variant), run(*args))
    assert not parity.problems, "\n".join(parity.problems)


@with_cases(VARIANTS)
def test_strided_arguments_give_the_same_result(variant: Variant, case: Case) -> None:
    args = case.make(variant.device)
    spread = tuple(strided(arg) if isinstance(arg, Tensor) else arg for arg in args)
    with variant.active() as run, poisoned():
        parity = truth(variant.op, case, variant.device).check(f"{variant}, strided", run(*spread))
    assert not parity.problems, "\n".join(parity.problems)


def strided(tensor: Tensor) -> Tensor:
    """The same values with every second element of memory unused."""
    if tensor.dim() == 0:
        return tensor
    room = tensor.new_zeros((*tensor.shape, 2))
    room[..., 0] = tensor
    return room[..., 0]


@with_cases(VARIANTS)
def test_two_runs_are_equal_bit_for_bit_and_leave_the_arguments_alone(
    variant: Variant, case: Case
) -> None:
    args, untouched = case.make(variant.device), case.make(variant.device)
    with variant.active() as run:
        first, second = run(*args), run(*args)
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        if index not in variant.op.opaque:
            assert not bitwise_problems(a, b)
    for before, after in zip(untouched, args, strict=True):
        if isinstance(before, Tensor):
            assert not bitwise_problems(after, before)
            assert all(after.data_ptr() != a.data_ptr() for a in first if a.numel())


@with_cases(VARIANTS)
def test_opcheck(variant: Variant, case: Case) -> None:
    """Schema and fake of every backend; autograd and AOT dispatch once: no backend changes them."""
    args = case.make(variant.device)
    checks = ["test_faketensor"]
    if not any(is_fp8(arg) for arg in args):  # PyTorch compares arguments by allclose
        checks.append("test_schema")
    if variant.backend == "torch":
        checks.append("test_autograd_registration")
        if variant.op.differentiable:
            args = tuple(arg.requires_grad_() if trainable(arg) else arg for arg in args)
    with variant.active() as run, poisoned():  # poison makes opaque outputs comparable
        outputs = run(*args)
        if variant.backend == "torch" and not any(map(has_nan, outputs)):  # equal to nothing there
            checks.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(variant.op.overload, args, test_utils=checks)


def is_fp8(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point() and arg.itemsize == 1


def has_nan(output: Tensor) -> bool:
    return output.is_floating_point() and bool(output.detach().isnan().any())


def trainable(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point()


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.backend != "cuda"], ids=str)
def test_compiles_whole_with_dynamic_shapes(variant: Variant) -> None:
    torch.compiler.reset()
    compiled = torch.compile(variant.op.overload, fullgraph=True, dynamic=True)
    case = small_cases(variant.op)[0]
    args = case.make(variant.device)
    with variant.active() as run:
        expected, got = run(*args), as_tuple(compiled(*args))
    for index, (a, b) in enumerate(zip(expected, got, strict=True)):
        if index not in variant.op.opaque:
            assert not bitwise_problems(b, a)


def linear_head(rows: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 72, generator=rng).to(device, dtype)
    weight = (torch.randn(301, 72, generator=rng) / 8).to(device, dtype)
    return hidden, weight, torch.randint(301, (rows,), generator=rng).to(device)


def linear_rows(
    hidden: Tensor, weight: Tensor, target: Tensor, options: dict[str, Any]
) -> tuple[LogProb, Tensor]:
    hidden = hidden.detach().requires_grad_()
    result = r1kernels.linear_logprob(hidden, weight.requires_grad_(), target, **options)
    return result, hidden


def logits_rows(
    hidden: Tensor, weight: Tensor, target: Tensor, options: dict[str, Any]
) -> tuple[LogProb, Tensor]:
    logits = torch.stack([(row * weight).sum(-1) for row in hidden]).detach().requires_grad_()
    return r1kernels.logprob(logits, target, **options), logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"entropy": True}], ids=str)
@pytest.mark.parametrize(
    ("variant", "rows"),
    [
        pytest.param(v, rows, id=str(v))
        for v in VARIANTS + ISA_VARIANTS
        for name, rows in (("linear_logprob", linear_rows), ("logprob", logits_rows))
        if v.op.name == name and v.backend != "torch"  # BLAS chooses its order by the shape
    ],
)
def test_a_row_does_not_depend_on_its_batch(
    variant: Variant, rows: Callable[..., Any], options: dict[str, Any], dtype: torch.dtype
) -> None:
    hidden, weight, target = linear_head(100, variant.device, dtype)
    results = []
    with variant.active(), r1kernels.using(variant.backend):  # the backward pass too
        for keep in (100, 1, 37):
            result, leaf = rows(hidden[:keep], weight, target[:keep], options)
            total = result.logprob.sum()
            if result.entropy is not None:
                total = total + result.entropy.sum()
            (gradient,) = torch.autograd.grad(total, leaf)
            results.append([t for t in (*result, gradient) if t is not None])
    whole = results[0]
    for part in results[1:]:
        for all_rows, some_rows in zip(whole, part, strict=True):
            assert not bitwise_problems(some_rows, all_rows[: len(some_rows)])


def test_compiles_once_for_every_number_of_rows() -> None:
    def loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return r1kernels.linear_logprob(hidden, weight, target).logprob.sum()

    torch.compiler.reset()
    count = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=count)
    after = []
    for rows in (100, 150, 400):
        hidden, weight, target = linear_head(rows, "cpu", torch.float32)
        compiled(hidden.requires_grad_(), weight.requires_grad_(), target).backward()
        after.append(count.frame_count)
    assert after[0] == after[1] == after[2]
