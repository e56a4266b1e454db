"""Every op × every implementation that runs here × every case: architecture.md's contract.

An op that is declared, or a backend that is plugged in, is tested here without another line.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

import r1kernels
from r1kernels import triton
from r1kernels.__main__ import unavailable
from r1kernels.core.op import OPS, PREFERENCE, Case, Op
from r1kernels.head.head import LogProb
from r1kernels.testing.compare import Truth, as_tuple, bitwise_problems, metadata_problems
from r1kernels.testing.poison import poisoned
from tests import instruction_sets

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
BACKENDS = {device: ("torch", *PREFERENCE[device]) for device in DEVICES}
if triton.INTERPRETED:
    BACKENDS["cpu"] += ("triton",)


class Subject(NamedTuple):
    """What is tested: an implementation of an op and, for C++, an instruction set."""

    device: str
    op: Op
    name: str  # of the implementation
    isa: str = ""

    @property
    def backend(self) -> str:
        return self.name.partition(":")[0]

    def __str__(self) -> str:
        name = f"{self.op.name}-{self.name}" + (f"-{self.isa}" if self.isa else "")
        return f"{name}-{self.device}"

    def refusal(self, args: tuple[Any, ...]) -> str | None:
        """Why the backend cannot take these arguments, or None."""
        able = self.op.implementations[self.name].able(*args)
        return None if able is True else able or "cannot take these arguments"

    @contextmanager
    def active(self) -> Iterator[Callable[..., tuple[Tensor, ...]]]:
        """A function that runs this subject, or skips the test when it cannot take the case."""

        def run(*args: Any) -> tuple[Tensor, ...]:
            if (refusal := self.refusal(args)) is not None:
                pytest.skip(f"{self.name}: {refusal}")
            return as_tuple(self.op(*args))

        with self.op.only(self.name):
            if not self.isa:
                yield run
                return
            torch.ops.r1_cpp.limit_isa(self.isa)
            try:
                yield run
            finally:
                torch.ops.r1_cpp.limit_isa("")


SUBJECTS = [
    Subject(device, op, name)
    for device in DEVICES
    for op in OPS.values()
    if not op.overload._schema.is_mutable  # it would change the arguments that these tests share
    for backend in BACKENDS[device]
    for name in op.named(backend)
    if unavailable(op, name) is None
]
ISA_SUBJECTS = [
    subject._replace(isa=isa)
    for subject in SUBJECTS
    if subject.backend == "cpp"
    for isa in instruction_sets.here()[:-1]  # the last one is what runs anyway
]


def with_cases(subjects: list[Subject]) -> pytest.MarkDecorator:
    pairs = [(subject, case) for subject in subjects for case in small_cases(subject.op)]
    ids = [f"{subject}-{case.name}" for subject, case in pairs]
    return pytest.mark.parametrize(("subject", "case"), pairs, ids=ids)


def small_cases(op: Op) -> list[Case]:
    return [case for case in op.cases if not case.bench]


@cache
def truth(op: Op, case: Case, device: str) -> Truth:
    return Truth(op, case, case.make(device))


@with_cases(SUBJECTS + ISA_SUBJECTS)
def test_equals_the_reference_wherever_its_arguments_lie(subject: Subject, case: Case) -> None:
    """The contract of a backend, from two runs of it in which fresh memory is filled with NaN.

    The first must equal the reference, leave its arguments alone and have the types that the fake
    promises. The second, with gaps between its arguments and one thread instead of two, must give
    the same bits, as then must every run.
    """
    args, untouched = case.make(subject.device), case.make(subject.device)
    expected = truth(subject.op, case, subject.device)
    with subject.active() as run, poisoned():
        with threads(2):
            outputs = run(*args)
            repeated = run(*args) if subject.backend == "torch" else None
        with threads(1):
            spread = run(*map(strided, args))
    problems = list(expected.check(str(subject), outputs).problems)
    if repeated is None:
        where = "other bits when strided and on one thread"
        problems += named(where, differing(subject.op, spread, outputs))
    else:  # BLAS chooses its order by where a matrix lies, and by the number of threads
        problems += expected.check(f"{subject}, strided", spread).problems
        problems += named("other bits when repeated", differing(subject.op, repeated, outputs))
    problems += named("argument written to", changed(untouched, args))
    problems += named("argument returned as an output", returned(args, outputs))
    problems += named("not as the fake promises", unlike_fake(subject.op, args, outputs))
    assert not problems, f"{subject}, case {case.name!r}:\n" + "\n".join(problems)


@pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.backend == "cpp"], ids=str)
def test_a_call_leaves_no_memory_behind(subject: Subject) -> None:
    """Of malloc, which has what C++ keeps: nothing else tells that a string was not freed."""
    case, calls = small_cases(subject.op)[0], 400
    with subject.active() as run, threads(1):
        args, before = case.make(subject.device), 0
        for call in range(-20, calls):
            if call == 0:  # what is kept for later calls is there
                before = allocated()
            run(*args)
        grown = allocated() - before
    assert grown < 16 * calls  # the least that malloc gives


class Mallinfo2(ctypes.Structure):
    """What glibc says of its heap."""

    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


def allocated() -> int:
    """Bytes that malloc has given and not got back."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        pytest.skip("needs mallinfo2 of glibc 2.33")
    gc.collect()
    mallinfo2.restype = Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def named(contract: str, problems: Iterator[str]) -> list[str]:
    return [f"{contract}: {problem}" for problem in problems]


def differing(op: Op, repeated: Sequence[Tensor], outputs: Sequence[Tensor]) -> Iterator[str]:
    for index, (again, before) in enumerate(zip(repeated, outputs, strict=True)):
        if index not in op.opaque:
            yield from at(f"output {index}", bitwise_problems(again, before))


def changed(untouched: Sequence[Any], args: Sequence[Any]) -> Iterator[str]:
    for index, (before, after) in enumerate(zip(untouched, args, strict=True)):
        if isinstance(before, Tensor):
            yield from at(f"argument {index}", bitwise_problems(after, before))


def returned(args: Sequence[Any], outputs: Sequence[Tensor]) -> Iterator[str]:
    for index, arg in enumerate(args):
        for position, output in enumerate(outputs):
            if isinstance(arg, Tensor) and output.numel() and arg.data_ptr() == output.data_ptr():
                yield f"argument {index} is output {position}"


def unlike_fake(op: Op, args: Sequence[Any], outputs: Sequence[Tensor]) -> Iterator[str]:
    """Where torch.compile, which goes by the fake, would expect other sizes or types."""
    with FakeTensorMode() as mode:
        fakes = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
    for index, (output, fake) in enumerate(zip(outputs, as_tuple(fakes), strict=True)):
        yield from at(f"output {index}", metadata_problems(output, fake))


def at(place: str, problems: Sequence[str]) -> list[str]:
    return [f"{place}: {problem}" for problem in problems]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def strided(arg: Any) -> Any:
    """The same values in the same order, with every second element of memory unused."""
    if not isinstance(arg, Tensor) or arg.dim() == 0:
        return arg
    order = sorted(range(arg.dim()), key=arg.stride, reverse=True)
    room = arg.new_zeros((*(arg.shape[dim] for dim in order), 2))[..., 0]
    room = room.permute([order.index(dim) for dim in range(arg.dim())])
    room.copy_(arg)
    return room


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_opcheck(subject: Subject) -> None:
    """On the first case that the backend can take; on the others in the slow one."""
    for case in small_cases(subject.op):
        if subject.refusal(case.make(subject.device)) is None:
            opcheck(subject, case, "test_autograd_registration", "test_aot_dispatch_dynamic")
            return
    pytest.skip(f"{subject.name} takes no case")


@pytest.mark.slow
@with_cases(SUBJECTS)
def test_opcheck_of_every_case(subject: Subject, case: Case) -> None:
    """Autograd and AOT dispatch of PyTorch's backend only: the others have no part in it."""
    dispatch = ("test_autograd_registration", "test_aot_dispatch_dynamic")
    opcheck(subject, case, *(dispatch if subject.backend == "torch" else ()))


def opcheck(subject: Subject, case: Case, *checks: str) -> None:
    """PyTorch's own checks of schema, fake and ``checks``, where its comparisons can hold."""
    args = case.make(subject.device)
    chosen = {"test_faketensor", "test_schema", *checks}
    if any(is_fp8(arg) for arg in args):  # it compares arguments by allclose
        chosen.remove("test_schema")
    if checks and subject.op.differentiable:
        args = tuple(arg.requires_grad_() if trainable(arg) else arg for arg in args)
    with subject.active() as run, poisoned():  # poison makes opaque outputs comparable
        if any(map(has_nan, run(*args))):  # equal to nothing there
            chosen.discard("test_aot_dispatch_dynamic")
        torch.library.opcheck(subject.op.overload, args, test_utils=sorted(chosen))


def is_fp8(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point() and arg.itemsize == 1


def has_nan(output: Tensor) -> bool:
    return output.is_floating_point() and bool(output.detach().isnan().any())


def trainable(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point()


@pytest.mark.parametrize("subject", [v for v in SUBJECTS if v.backend != "cuda"], ids=str)
def test_compiles_whole_with_dynamic_shapes(subject: Subject) -> None:
    torch.compiler.reset()
    compiled = torch.compile(subject.op.overload, fullgraph=True, dynamic=True)
    case = small_cases(subject.op)[0]
    args = case.make(subject.device)
    with subject.active() as run:
        expected, got = run(*args), as_tuple(compiled(*args))
    for index, (a, b) in enumerate(zip(expected, got, strict=True)):
        if index not in subject.op.opaque:
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
    ("subject", "rows"),
    [
        pytest.param(v, rows, id=str(v))
        for v in SUBJECTS + ISA_SUBJECTS
        for name, rows in (("linear_logprob", linear_rows), ("logprob", logits_rows))
        if v.op.name == name and v.backend != "torch"  # BLAS chooses its order by the shape
    ],
)
def test_a_row_does_not_depend_on_its_batch(
    subject: Subject, rows: Callable[..., Any], options: dict[str, Any], dtype: torch.dtype
) -> None:
    hidden, weight, target = linear_head(100, subject.device, dtype)
    results = []
    with r1kernels.using(subject.backend), subject.active():  # the backward pass too
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
