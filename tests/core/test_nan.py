"""What is no number stays visible: docs/numerics.md, held against every op and backend.

A NaN or an infinity goes into each floating input of an op, one element at a time. Where the
reference has NaN in a result or in a gradient, so has every backend, and nowhere else; what is
infinite or NaN in the reference is so in every backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels import triton
from r1kernels.__main__ import unavailable
from r1kernels.core.op import OPS, Case, Op
from r1kernels.testing.compare import as_tuple

CASES = 2  # of an op
UPSTREAM = (
    "grad",
    "dlogprob",
    "dentropy",
    "da",
    "dy",
    "dh",
    "dout",
)  # the rest of a gradient's inputs fit together
# In the interpreter, and only these: a case of the others takes seconds.
IN_TRITON = ("logprob", "policy_loss", "moe_combine", "moe_permute", "group_advantage")


def floating(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point()


def cases(op: Op, count: int) -> list[Case]:
    return [case for case in op.cases if not case.bench][:count]


def results(op: Op, args: list[Any], backend: str) -> list[Tensor] | str:
    """Outputs and, where there are some, gradients with every fourth row of upstream zero."""
    try:
        with r1kernels.using(backend):
            if not op.differentiable:
                return list(as_tuple(op(*args)))
            args = [
                arg.detach().clone().requires_grad_() if floating(arg) and arg.itemsize > 1 else arg
                for arg in args
            ]
            outputs = as_tuple(op(*args))
            graded = [output for output in outputs if output.requires_grad]
            upstream = []
            for output in graded:
                gradient = torch.ones_like(output)
                if gradient.dim():
                    gradient[1::4] = 0
                upstream.append(gradient)
            leaves = [arg for arg in args if floating(arg) and arg.requires_grad]
            gradients = torch.autograd.grad(graded, leaves, upstream, allow_unused=True)
            kept = [out.detach() for i, out in enumerate(outputs) if i not in op.opaque]
            return [*kept, *(g for g in gradients if g is not None)]
    except ValueError as error:
        return str(error)


def poisoned(op: Op, count: int) -> Iterator[tuple[str, list[Any], float]]:
    """(what was done, arguments, value): one element of one floating input is no number."""
    names = [argument.name for argument in op.overload._schema.arguments]
    for case in cases(op, count):
        args = list(case.make("cpu"))
        for at, arg in enumerate(args):
            if not floating(arg) or not arg.numel():
                continue
            if op.name.endswith("_backward") and names[at] not in UPSTREAM:
                continue
            for value in (torch.nan, torch.inf)[: 1 if arg.itemsize == 1 else 2]:
                spoilt = arg.clone()
                middle = torch.tensor(arg.numel() // 2)
                spoilt[torch.unravel_index(middle, arg.shape)] = value
                given = [*args[:at], spoilt, *args[at + 1 :]]
                yield f"{case.name}, {value} in {names[at]}", given, value


def compare(op: Op, backend: str, count: int) -> list[str]:
    problems = []
    for what, args, value in poisoned(op, count):
        if op.backends[backend].when(*args) is not True:
            continue
        expected, got = (results(op, args, name) for name in ("torch", backend))
        if isinstance(expected, str) or isinstance(got, str):
            if expected != got:
                problems.append(f"{what}: expected {expected}, got {got}")
            continue
        for index, (right, found) in enumerate(zip(expected, got, strict=True)):
            if not right.is_floating_point():
                continue
            right, found = right.float(), found.float()
            if value != value and not torch.equal(right.isnan(), found.isnan()):
                problems.append(f"{what}: result {index}: NaN at other places")
            if (~right.isfinite() & found.isfinite()).any():
                problems.append(f"{what}: result {index}: finite where the reference is not")
    return problems


PURE = [op for op in OPS.values() if not op.overload._schema.is_mutable and op.name != "moe_sort"]


@pytest.mark.parametrize("op", PURE, ids=lambda op: op.name)
def test_compiled_kernels_show_what_the_reference_shows(op: Op) -> None:
    if (reason := unavailable(op, "cpp")) is not None:
        pytest.skip(reason)
    assert compare(op, "cpp", CASES) == []


@pytest.mark.skipif(not triton.INTERPRETED, reason="for the interpreter")
@pytest.mark.parametrize("name", IN_TRITON)
def test_triton_kernels_show_what_the_reference_shows(name: str) -> None:
    assert unavailable(OPS[name], "triton") is None
    assert compare(OPS[name], "triton", 1) == []


def backends(op: str) -> list[str]:
    found = ["torch", *(b for b in ("cpp",) if unavailable(OPS[op], b) is None)]
    return found + (["triton"] if triton.INTERPRETED else [])


def rows_of_logits() -> tuple[Tensor, Tensor]:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    return logits, torch.tensor([0, 3, 5, 8])


@pytest.mark.parametrize("backend", backends("logprob"))
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_logit_that_is_no_number_makes_its_row_nan_and_no_other(
    backend: str, value: float
) -> None:
    logits, target = rows_of_logits()
    logits[2, 1] = value
    logits.requires_grad_()
    with r1kernels.using(backend):
        result = r1kernels.logprob(logits, target, entropy=True)
        (result.logprob.sum() + result.entropy.sum()).backward()
    assert result.logprob.isnan().tolist() == [False, False, True, False]
    assert result.entropy.isnan().tolist() == [False, False, True, False]
    assert logits.grad.isnan().all(1).tolist() == [False, False, True, False]
    assert logits.grad.isnan().any(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("backend", backends("logprob"))
@pytest.mark.parametrize("head", [False, True], ids=["logits", "hidden states"])
def test_a_target_without_probability_has_finite_gradients(backend: str, head: bool) -> None:
    """log p = −∞ at the target: its own gradient is 1, and p·log p is 0."""
    logits, target = rows_of_logits()
    bias = torch.zeros(9)
    bias[target[1]] = -torch.inf

    def gradient(dtype: torch.dtype, backend: str) -> Tensor:
        z = logits.to(dtype).requires_grad_()
        with r1kernels.using(backend):
            if head:
                weight = torch.eye(9, dtype=dtype).requires_grad_()
                found = r1kernels.linear_logprob(
                    z, weight, target, bias=bias.to(dtype), entropy=True
                )
            else:
                found = r1kernels.logprob(z + bias.to(dtype), target, entropy=True)
            assert found.logprob[1] == -torch.inf
            (found.logprob.sum() + found.entropy.sum()).backward()
        return z.grad

    expected = gradient(torch.float64, "torch")
    assert expected.isfinite().all()
    assert torch.allclose(gradient(torch.float32, backend).double(), expected, atol=1e-5)


@pytest.mark.parametrize("backend", backends("policy_loss"))
@pytest.mark.parametrize(
    ("loss_type", "options"),
    [("grpo", {}), ("gspo", {}), ("cispo", {"epsilon_high": 5.0}), ("reinforce", {})],
)
def test_a_token_that_neither_policy_can_draw_has_the_ratio_1(
    backend: str, loss_type: str, options: dict[str, Any]
) -> None:
    def losses(dtype: torch.dtype, backend: str) -> tuple[Tensor, Tensor, Tensor]:
        logprob = torch.tensor([-0.5, -torch.inf, -1.0, -0.2], dtype=dtype).requires_grad_()
        advantages = torch.tensor([1.0, 0.0, 2.0, -1.0], dtype=dtype)
        with r1kernels.using(backend):
            loss, metrics = r1kernels.policy_loss(
                logprob, advantages, cu_seqlens=torch.tensor([0, 2, 4]), loss_type=loss_type,
                old_logprob=logprob.detach(), sampling_logprob=logprob.detach(), **options,
            )  # fmt: skip
            loss.backward()
        return loss.detach(), logprob.grad, metrics["ratio_mean"]

    found, expected = losses(torch.float32, backend), losses(torch.float64, "torch")
    for got, truth in zip(found, expected, strict=True):
        assert truth.isfinite().all()
        assert torch.allclose(got.double(), truth, atol=1e-6)
    assert expected[2] == 1


@pytest.mark.parametrize("backend", backends("policy_loss"))
def test_only_the_samplers_nan_is_taken_for_unknown(backend: str) -> None:
    def metrics(logprob: list[float], sampling: list[float]) -> dict[str, Tensor]:
        with r1kernels.using(backend):
            return r1kernels.policy_loss(
                torch.tensor(logprob), torch.ones(1), cu_seqlens=torch.tensor([0, 3]),
                sampling_logprob=torch.tensor(sampling), rollout_correction="token_mask",
            ).metrics  # fmt: skip

    nan = torch.nan
    known = metrics([-1.0, -1.0, -1.0], [-1.25, nan, -1.0])
    assert known["sampling_delta_mean"] == pytest.approx(0.25 / 3)
    lost = metrics([-1.0, nan, -1.0], [-1.25, -1.0, -1.0])
    for name in ("sampling_delta_mean", "sampling_delta_max", "ratio_max", "rollout_weight_mean"):
        assert lost[name].isnan(), name


@pytest.mark.parametrize("backend", backends("policy_loss"))
def test_a_token_without_weight_adds_nothing_however_infinite_it_is(backend: str) -> None:
    with r1kernels.using(backend):
        loss = r1kernels.policy_loss(
            torch.tensor([-0.5, -torch.inf]), torch.ones(1), cu_seqlens=torch.tensor([0, 2]),
            loss_type="reinforce", sampling_logprob=torch.tensor([-0.5, -0.5]),
            rollout_correction="token_mask", rollout_clip_min=0.5,
        ).loss  # fmt: skip
    assert loss.item() == pytest.approx(0.25)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (
        lambda: r1kernels.policy_loss(
            torch.zeros(2), torch.ones(1), cu_seqlens=torch.tensor([0, 2]), num_active_tokens=0
        ),
        "num_active_tokens: expected a finite number above 0",
    ),
    (
        lambda: r1kernels.policy_loss(
            torch.zeros(2), torch.ones(1), cu_seqlens=torch.tensor([0, 2]), num_sequences=torch.nan
        ),
        "num_sequences: expected a finite number",
    ),
    (lambda: r1kernels.moe_route(torch.zeros(2, 4), 2, scale=torch.nan), "scale: expected a fin"),
    (
        lambda: r1kernels.logprob(
            torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), temperature=torch.tensor([1.0, 0])
        ),
        r"temperature\[1\]: expected a finite number above 0, got 0",
    ),
    (
        lambda: r1kernels.linear_logprob(
            torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, dtype=torch.int64),
            temperature=torch.tensor([torch.nan, 1.0]),
        ),
        r"temperature\[0\]: expected a finite number above 0, got nan",
    ),
    (
        lambda: r1kernels.candidates(torch.zeros(2, 3), temperature=torch.tensor([1.0, -1.0])),
        r"temperature\[1\]: expected a finite number above 0, got -1",
    ),
    (
        lambda: r1kernels.logprob(
            torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), logit_scale=torch.nan
        ),
        "logit_scale: expected a finite number",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_scalar_or_temperature_that_could_only_give_nan_is_refused(
    call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call()
