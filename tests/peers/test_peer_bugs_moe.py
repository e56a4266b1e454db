"""What users of other libraries ran into with experts: one test each, named after its report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels import Routing
from r1kernels.testing.compare import bitwise_problems

SWITCHES = {"num_groups": 4, "top_k_groups": 2}


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def layer(tokens: int, experts: int, top_k: int) -> tuple[Tensor, Tensor, Tensor, Routing]:
    x, gate_up, down = drawn(tokens, 48), drawn(experts, 64, 48) / 7, drawn(experts, 48, 32) / 6
    routing = r1kernels.moe_route(drawn(tokens, experts), top_k)
    return x, gate_up, down, routing


def test_vllm_13474_experts_of_other_groups_lose_to_negative_scores() -> None:
    bias = torch.full((16,), -5.0)  # a score of 0 for what is masked would win
    ids = r1kernels.moe_route(drawn(200, 16), 4, bias=bias, **SWITCHES).ids
    groups = (ids // 4).sort(1).values
    assert (1 + (groups.diff(dim=1) != 0).sum(1) <= 2).all()


@pytest.mark.parametrize("value", [float("-inf"), float("nan"), -3.4e38], ids=str)
def test_vllm_24146_rows_without_a_usable_score_end_and_stay_in_range(value: float) -> None:
    logits = torch.full((3, 16), value)
    ids = r1kernels.moe_route(logits, 4, bias=drawn(16), **SWITCHES).ids
    assert all(len(set(row)) == 4 and min(row) >= 0 and max(row) < 16 for row in ids.tolist())


def test_flashinfer_2584_equal_scores_are_chosen_alike_in_every_run_and_row() -> None:
    logits = torch.zeros(500, 64)
    first, second = (r1kernels.moe_route(logits, 8).ids for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, torch.arange(8).expand(500, 8))


def test_megatron_4168_replayed_choices_keep_the_gradient_of_the_router() -> None:
    logits = drawn(20, 16).requires_grad_()
    worst = (-logits.detach()).topk(4).indices  # of all choices those that live routing would drop
    weights = r1kernels.moe_route(logits, 4, replay_ids=worst, **SWITCHES).weights
    (gradient,) = torch.autograd.grad((weights * drawn(20, 4)).sum(), logits)
    assert (gradient.gather(1, worst) != 0).all()
    assert (gradient != 0).sum() == worst.numel()


def test_transformers_43362_a_tokens_experts_are_summed_in_one_order() -> None:
    x, gate_up, down, routing = layer(300, 8, 4)
    runs = []
    for _ in range(2):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, gate_up, down)]
        y = r1kernels.moe_experts(*leaves, routing)
        runs.append((y.detach(), *torch.autograd.grad(y.square().sum(), leaves)))
    for a, b in zip(*runs, strict=True):
        assert not bitwise_problems(a, b)


@pytest.mark.parametrize("align", [1, 128])
def test_te_2966_any_number_of_tokens_per_expert(align: int) -> None:
    x, gate_up, down, _ = layer(33, 8, 3)
    ids = torch.arange(99).view(33, 3).remainder(97).remainder(8)  # 13, 13, … and 8: not of 32
    routing = Routing.of(torch.rand(33, 3), ids, 8, align=align)
    got = r1kernels.moe_experts(x, gate_up, down, routing)
    expected = torch.zeros_like(got)
    for t, row in enumerate(ids.tolist()):
        for j, e in enumerate(row):
            gate, up = (gate_up[e] @ x[t]).chunk(2)
            out = down[e] @ (torch.nn.functional.silu(gate) * up)
            expected[t] += routing.weights[t, j] * out
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_aiter_2359_more_than_54272_tokens() -> None:
    tokens = 54_273 + 1000
    logits = drawn(16, 8).repeat(tokens // 16 + 1, 1)[:tokens]
    routing = r1kernels.moe_route(logits, 2)
    assert torch.equal(routing.ids[16:], routing.ids[:-16])
    assert int(routing.counts.sum()) == 2 * tokens
    x = drawn(tokens, 4)
    rows = r1kernels.moe_permute(x, routing.gather, routing.inverse)
    back = r1kernels.moe_combine(rows, routing.weights, routing.gather, routing.inverse)
    torch.testing.assert_close(back, x)  # weights sum to 1


def test_qwen3_736_no_gradient_of_full_size_for_every_expert() -> None:
    x, gate_up, down, routing = layer(40, 8, 2)
    gate_up.requires_grad_()
    y = r1kernels.moe_experts(x, gate_up, down, routing)
    seen, waiting = [], [y.grad_fn]
    while waiting:
        node = waiting.pop()
        seen.append(node.name())
        waiting += [parent for parent, _ in node.next_functions if parent is not None]
    assert not [name for name in seen if "Select" in name or "Index" in name]


def test_sglang_15891_and_vllm_22215_nothing_is_tuned_at_run_time() -> None:
    kernels = list(Path(r1kernels.__file__).parent.glob("**/triton/*.py"))
    assert kernels
    for path in kernels:
        assert "triton.autotune" not in path.read_text(), path.name
