"""The pattern itself, on a toy op: y = scale · x, with backends that say when they are able."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.__main__ import WIDTH, table
from r1kernels.core import op as pattern
from r1kernels.core.op import OPS, Case, Op
from r1kernels.testing.compare import Truth

NAME = "toy_scale"


def reference(x: Tensor, scale: float) -> Tensor:
    return x * scale


def fake(x: Tensor, scale: float) -> Tensor:
    return torch.empty_like(x)


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.scale = inputs[1]


def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return grad * ctx.scale, None


def validate(x: Tensor, scale: float) -> None:
    if scale == 0:
        raise ValueError(f"{NAME}: scale: expected a number other than 0, got 0")


CASE = Case("small", lambda device: (torch.arange(6.0, device=device), 3.0))


@pytest.fixture(scope="module")
def declared() -> Iterator[Op]:
    yield Op(
        f"{NAME}(Tensor x, float scale) -> Tensor",
        reference=reference,
        fake=fake,
        save=save,
        backward=backward,
        validate=validate,
        cases=(CASE,),
    )
    del OPS[NAME]


@pytest.fixture
def toy(declared: Op, monkeypatch: pytest.MonkeyPatch) -> Op:
    """The toy op with its own copies of everything that a test may change."""
    monkeypatch.setattr(declared, "implementations", dict(declared.implementations))
    monkeypatch.setitem(pattern.PREFERENCE, "cpu", ("fast", "cpp"))
    return declared


def add_fast(toy: Op, when: Any = lambda *args: True) -> list[tuple[Any, ...]]:
    """Plug in the backend "fast"; the list grows by the arguments of each call of it."""
    calls = []

    @toy.implementation("fast", when=when)
    def fast(x: Tensor, scale: float) -> Tensor:
        calls.append((x, scale))
        return x.detach() * scale

    return calls


def test_declaring_puts_it_in_ops_and_under_torch_ops(toy: Op) -> None:
    assert OPS[NAME] is toy
    assert toy.overload is torch.ops.r1kernels.toy_scale.default
    assert list(toy.implementations) == ["torch", "cpp", "cuda"]
    assert repr(toy) == "Op(r1kernels::toy_scale(Tensor x, float scale) -> Tensor)"


def test_the_reference_runs_when_nothing_better_can(toy: Op) -> None:
    choice = toy.select(torch.ones(2), 3.0)
    assert choice.implementation == "torch"
    assert choice.reasons["fast"] == "toy_scale has no fast implementation"
    assert "cpp" in choice.reasons
    assert toy(torch.ones(2), 3.0).tolist() == [3.0, 3.0]


def test_the_first_able_backend_of_the_preference_runs(toy: Op) -> None:
    calls = add_fast(toy)
    assert toy.select(torch.ones(2), 3.0) == ("fast", {})
    assert toy(torch.ones(2), 3.0).tolist() == [3.0, 3.0]
    assert len(calls) == 1


def test_a_backend_that_gives_a_reason_is_passed_over(toy: Op) -> None:
    calls = add_fast(toy, when=lambda x, scale: x.numel() > 4 or "needs more than 4 elements")
    assert toy.select(torch.ones(2), 3.0).reasons["fast"] == "needs more than 4 elements"
    toy(torch.ones(2), 3.0)
    assert calls == []
    toy(torch.ones(5), 3.0)
    assert len(calls) == 1


def test_a_backend_that_says_false_still_leaves_a_reason(toy: Op) -> None:
    add_fast(toy, when=lambda *args: False)
    assert toy.select(torch.ones(2), 3.0).reasons["fast"] == "cannot take these arguments"


def test_explain_names_the_backend_and_every_reason(
    toy: Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pattern.PREFERENCE, "cpu", ("fast",))
    args = (torch.ones(2), 3.0)
    assert r1kernels.explain(NAME, *args) == (
        "toy_scale: torch\n  not fast: toy_scale has no fast implementation"
    )
    add_fast(toy)
    assert r1kernels.explain(toy, *args) == "toy_scale: fast"
    with toy.using("torch"):
        assert r1kernels.explain(toy, *args) == "toy_scale: torch (pinned)"


def test_explain_of_an_unknown_op_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown op 'nonsense'.*linear_logprob"):
        r1kernels.explain("nonsense")


def test_using_pins_one_op_and_restores_the_outer_pin(toy: Op) -> None:
    add_fast(toy)
    args = (torch.ones(2), 3.0)
    with toy.using("torch"):
        with toy.using("fast"):
            assert toy.select(*args).implementation == "fast"
        assert toy.select(*args).implementation == "torch"
    assert toy.select(*args).implementation == "fast"


def test_using_restores_after_an_error(toy: Op) -> None:
    add_fast(toy)
    with pytest.raises(KeyError), toy.using("torch"):
        raise KeyError
    assert toy.select(torch.ones(2), 3.0).implementation == "fast"


def test_using_for_all_ops_pins_those_that_have_the_backend(toy: Op) -> None:
    add_fast(toy)
    rewards = (torch.ones(2), torch.zeros(2, dtype=torch.int64), None, "group", "mean", 1e-4)
    before = OPS["group_advantage"].select(*rewards)
    with r1kernels.using("fast"):
        assert toy.select(torch.ones(2), 3.0).implementation == "fast"
        assert OPS["group_advantage"].select(*rewards) == before
    with r1kernels.using("torch"):
        assert OPS["group_advantage"].select(*rewards).implementation == "torch"


def test_using_an_unknown_backend_lists_the_known_ones(toy: Op) -> None:
    with (
        pytest.raises(ValueError, match=r"toy_scale: unknown backend 'quick'.*torch, cpp"),
        toy.using("quick"),
    ):
        pass


def test_a_pinned_backend_that_cannot_run_is_an_error_and_never_a_fallback(toy: Op) -> None:
    add_fast(toy, when=lambda *args: "not today")
    with (
        toy.using("fast"),
        pytest.raises(RuntimeError, match=r"pinned to backend 'fast'.*not today"),
    ):
        toy(torch.ones(2), 3.0)


def test_values_are_checked_before_any_backend(toy: Op) -> None:
    calls = add_fast(toy)
    with pytest.raises(ValueError, match="toy_scale: scale: expected a number other than 0"):
        toy(torch.ones(2), 0.0)
    assert calls == []


def test_gradients_are_the_ops_own_on_every_backend(toy: Op) -> None:
    add_fast(toy)
    for backend in ("torch", "fast"):
        x = torch.ones(3, dtype=torch.float64, requires_grad=True)
        with toy.using(backend):
            assert torch.autograd.gradcheck(lambda x: toy(x, 3.0), (x,))


def test_fake_tensors_never_reach_a_backend(toy: Op) -> None:
    calls = add_fast(toy)
    y = toy(torch.ones(3, 4, device="meta"), 3.0)
    assert y.shape == (3, 4)
    assert y.device.type == "meta"
    assert calls == []


def test_it_compiles_and_opchecks_with_a_plugged_in_backend(toy: Op) -> None:
    calls = add_fast(toy)
    torch.compiler.reset()
    compiled = torch.compile(toy.overload, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (3, 8):
        x = torch.ones(size, requires_grad=True)
        compiled(x, 3.0).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [3.0] * size
    assert len(calls) == 2
    torch.library.opcheck(toy.overload, (torch.ones(3, requires_grad=True), 3.0))


def test_parity_names_op_backend_case_output_and_errors(toy: Op) -> None:
    args = CASE.make("cpu")
    truth = Truth(toy, CASE, args)
    assert truth.check("fast", toy(*args)).problems == ()
    (problem, _) = truth.check("fast", toy(*args) + 0.1).problems
    assert problem.startswith("toy_scale, fast, case 'small', output 0: max error 0.1 against")
    (problem,) = truth.check("fast", toy(*args).double()).problems
    assert problem.endswith("dtype: expected torch.float32, got torch.float64")


def test_the_module_that_an_op_names_plugs_in_its_triton_kernel() -> None:
    pytest.importorskip("triton")
    named = [op for op in OPS.values() if "triton" in op.modules]
    assert named
    assert [op.absent("triton") for op in named if op.absent("triton")] == []


def test_the_table_lists_every_op_in_80_columns() -> None:
    lines = table().splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert {line.split()[0] for line in lines if line} >= set(OPS)


def test_using_a_backend_that_no_op_has_names_the_nearest() -> None:
    with (
        pytest.raises(ValueError, match=r"using: backend: .*torch, .*'cp' \(did you mean 'cpp'"),
        r1kernels.using("cp"),
    ):
        pass


def test_using_takes_names_of_ops(toy: Op) -> None:
    add_fast(toy)
    with r1kernels.using("torch", NAME, "moe_sort"):
        assert toy.select(torch.ones(2), 3.0).implementation == "torch"
    with (
        pytest.raises(ValueError, match=r"using: unknown op 'moe_srt'.*did you mean 'moe_sort'"),
        r1kernels.using("torch", "moe_srt"),
    ):
        pass


def test_what_pytorchs_dispatcher_makes_of_arguments_is_made_of_them(toy: Op) -> None:
    calls = add_fast(toy)
    toy(torch.ones(2), 3)  # an int where a float is declared
    assert type(calls[-1][1]) is float
    negated = torch.view_as_complex(torch.ones(2, 2)).conj().imag  # in memory it is 1
    assert negated.is_neg()
    assert toy(negated, 3.0).tolist() == [-3.0, -3.0]
    toy(torch.nn.Parameter(torch.ones(2)).detach(), 3.0)
    assert len(calls) == 3


def test_modes_and_profilers_see_a_call(toy: Op) -> None:
    with torch.profiler.profile() as seen:
        toy(torch.ones(2), 3.0)
    assert f"r1kernels::{NAME}" in {event.key for event in seen.key_averages()}


def test_gradients_without_the_dispatcher_are_those_with_it(toy: Op) -> None:
    x = torch.ones(3, requires_grad=True)
    for call in (toy, toy.overload):
        y = call(x, 3.0)
        assert NAME in y.grad_fn.name()
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == [3.0] * 3
