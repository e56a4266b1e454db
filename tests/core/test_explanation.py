"""What ``explain`` says of functions that run several ops, of ops, and of what is neither."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.core.op import OPS
from r1kernels.nn import FP8Linear
from tests.fp8_measures import squares

T, H, V, E, INNER = 6, 8, 20, 4, 5
IDS = torch.zeros(2, dtype=torch.int64)


def head(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(T, H, dtype=dtype, requires_grad=True)
    return hidden, torch.randn(V, H, dtype=dtype, requires_grad=True), torch.randint(V, (T,))


def experts() -> tuple[Tensor, Tensor, Tensor, r1kernels.Routing]:
    x, gate_up, down = torch.randn(T, H), torch.randn(E, 2 * INNER, H), torch.randn(E, H, INNER)
    return x, gate_up, down, r1kernels.moe_route(torch.randn(T, E), 2)


def ops_of(text: str) -> list[str]:
    """The names of ops in an explanation; "…" where the backward pass begins."""
    lines = [line for line in text.splitlines()[1:] if not line.startswith(" ")]
    return ["…" if line.startswith("and") else line.split(":")[0] for line in lines]


def test_a_function_of_one_op_is_a_line() -> None:
    with r1kernels.using("torch"):
        found = r1kernels.explain("group_advantage", torch.ones(2), IDS)
        assert found == "group_advantage: torch (pinned)"
        assert r1kernels.explain(r1kernels.group_advantage, torch.ones(2), IDS) == found


def test_the_arguments_of_the_op_of_that_name_are_taken_too() -> None:
    given = torch.ones(2), IDS, None, "group", "mean", 1e-4
    expected = r1kernels.explain(OPS["group_advantage"], *given)
    assert r1kernels.explain("group_advantage", *given) == expected


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        (
            "fused_linear_grpo_loss",
            {"rewards": torch.tensor([1.0, 0.0]), "group_ids": IDS},
            ["group_advantage", "linear_logprob", "policy_loss", "…", "linear_logprob_backward"],
        ),
        (
            "fused_linear_grpo_loss",
            {"advantages": torch.ones(2)},
            ["linear_logprob", "policy_loss", "…", "linear_logprob_backward"],
        ),
    ],
)
def test_the_fused_loss_names_its_ops(name: str, kwargs: Any, expected: list[str]) -> None:
    starts = torch.tensor([0, 3, T])
    text = r1kernels.explain(name, *head(), cu_seqlens=starts, **kwargs)
    assert text.startswith("fused_linear_grpo_loss runs\n")
    assert ops_of(text) == expected


def test_a_reason_stands_under_its_op() -> None:
    text = r1kernels.explain("linear_cross_entropy", *head(torch.float64))
    assert text == (
        "linear_cross_entropy runs\n"
        "linear_logprob: torch\n"
        "  not cpp: takes float32 and bfloat16, got float64\n"
        "and in the backward pass\n"
        "linear_logprob_backward: torch\n"
        "  not cpp: takes float32 and bfloat16, got float64"
    )


def test_experts_in_one_op_and_in_several() -> None:
    x, gate_up, down, routing = experts()
    assert ops_of("\n" + r1kernels.explain("moe_experts", x, gate_up, down, routing)) == [
        "moe_experts"
    ]
    text = r1kernels.explain("moe_experts", x, gate_up.mT, down.mT, routing, transposed=True)
    assert ops_of(text) == ["moe_permute", "grouped_mm", "moe_combine"]
    assert "(2 times)" in text.splitlines()[2]


def test_fp8_layers_and_their_backward_passes() -> None:
    x, gate_up, down, routing = experts()
    codes = squares(gate_up), squares(down)
    text = r1kernels.explain("fp8_experts", x, gate_up.requires_grad_(), down, *codes, routing)
    first, second = text.split("\nand in the backward pass\n")
    assert {"fp8_quantize", "fp8_grouped_gemm", "fp8_swiglu", "moe_combine"} <= set(ops_of(first))
    assert "fp8_grouped_wgrad" in ops_of("\n" + second)

    weight = squares(torch.randn(V, H))
    parameter = torch.nn.Parameter(weight.data)  # of a checkpoint in FP8
    parameter.grad_dtype = torch.float32
    text = r1kernels.explain("fp8_linear", x, parameter, r1kernels.FP8Tensor(*weight[:2]))
    assert ops_of(text) == ["fp8_linear_forward", "…", "fp8_quantize", "fp8_gemm"]


def test_a_function_of_ones_own() -> None:
    hidden, weight, target = head()

    def score(hidden: Tensor) -> Tensor:
        return r1kernels.linear_logprob(hidden, weight, target).logprob.mean()

    text = r1kernels.explain(score, hidden)
    assert text.startswith("score runs\n")
    assert ops_of(text) == ["linear_logprob", "…", "linear_logprob_backward"]


def test_a_function_without_an_op_says_so() -> None:
    text = r1kernels.explain("candidates", torch.randn(3, 5), top_k=2)
    assert text == "candidates: no op of r1kernels, PyTorch's own functions"


def test_nothing_is_computed_and_nothing_is_written() -> None:
    bias, counts = torch.zeros(E), torch.tensor([5, 0, 0, 0])
    r1kernels.explain("update_expert_bias", bias, counts)
    assert not bias.any()
    hidden, weight, target = head()
    target.fill_(V + 7)  # the values are not looked at
    r1kernels.explain("linear_logprob", hidden, weight, target)
    assert hidden.grad is None


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        ("moe_expert", (), r"unknown op 'moe_expert', .*did you mean 'moe_experts'\?"),
        (3, (), "function: expected a function, an op or a name, got 3"),
        ("moe_experts", (), r"moe_experts: expected the arguments of a call of it, \(x: .*'x'"),
        ("moe_sort", (torch.zeros(1, 1), 2, 3, 4), "moe_sort: expected the arguments"),
        ("linear_logprob_backward", (), "expected the 20 arguments of the op linear_logprob_back"),
        (OPS["moe_sort"], (torch.zeros(1, 1),), r"expected the 3 arguments of the op moe_sort\("),
    ],
)
def test_what_cannot_be_explained(function: Any, args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"explain: .*{message}"):
        r1kernels.explain(function, *args)


def test_errors_of_the_call_itself_come_through() -> None:
    with pytest.raises(TypeError, match="linear_logprob: target: expected dtype"):
        r1kernels.explain("linear_logprob", *head()[:2], torch.zeros(T))


def test_a_module_and_what_it_keeps_for_later_calls() -> None:
    layer, x = FP8Linear(40, 20), torch.randn(3, 40)
    text = r1kernels.explain(layer, x)
    assert text.startswith("FP8Linear runs\n")
    assert "…" in ops_of(text)  # its parameters require gradients
    expected = FP8Linear.from_linear(layer)(x)
    assert torch.equal(layer(x), expected)  # no codes of an explanation are left
    assert layer.weight.grad is None
