"""What the cases of routing, sorting and permuting are too small or too tame for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from r1kernels import triton
from r1kernels.core.op import Case, Op
from r1kernels.moe import sort
from r1kernels.moe.combine import MOE_COMBINE, MOE_COMBINE_BACKWARD
from r1kernels.moe.permute import MOE_PERMUTE
from r1kernels.moe.route import MOE_ROUTE, MOE_ROUTE_BACKWARD, STRANGE, VARIANTS, Variant
from r1kernels.moe.sort import MOE_SORT
from r1kernels.testing.compare import Truth, bitwise_problems
from r1kernels.testing.poison import poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not triton.INTERPRETED, reason="neither a GPU nor Triton's interpreter"
)


def on_triton(op: Op, *args: Any) -> Any:
    with op.using("triton"), poisoned():
        return op(*args)


def problems(op: Op, *args: Any) -> tuple[str, ...]:
    truth = Truth(op, Case("this one", lambda device: args), args)
    return truth.check("triton", on_triton(op, *args)).problems


def routing(
    logits: Tensor, top_k: int, variant: Variant, bias: Tensor | None, groups: tuple[int, int]
) -> tuple[Any, ...]:
    return (
        logits, top_k, variant.score, variant.order, bias, *groups, variant.normalize,
        variant.scale, None, None, 0,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter
@pytest.mark.parametrize("case", STRANGE, ids=lambda case: case.name)
def test_nan_and_infinities_route_as_in_the_reference(case: Case) -> None:
    assert not problems(MOE_ROUTE, *case.make(DEVICE))


@pytest.mark.parametrize("groups", [(1, 1), (3, 2)], ids=["no groups", "groups of 10"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_equal_keys_go_to_the_lower_expert(
    variant: Variant, biased: bool, groups: tuple[int, int]
) -> None:
    """Among zeros of either sign and numbers that float32 arithmetic may flush to them."""
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1.0, -torch.inf, 40.0, 41.0, torch.nan])
    logits = values[torch.randint(len(values), (40, 30))]
    logits[0] = 1.0
    bias = torch.tensor([0.0, -0.0, 0.5]).repeat(10).to(DEVICE) if biased else None
    ids = on_triton(MOE_ROUTE, *routing(logits.to(DEVICE), 9, variant, bias, groups))[1]
    expected = MOE_ROUTE.implementations["torch"].run(
        *routing(logits.to(DEVICE), 9, variant, bias, groups)
    )[1]
    assert not bitwise_problems(ids, expected)


def test_scores_that_float32_cannot_tell_apart() -> None:
    """σ(20) and σ(20 + 2⁻¹⁹) are the same number in float32."""
    logits = torch.full((1, 64), 20.0, device=DEVICE)
    logits[0, 40] += 2**-19
    assert logits.sigmoid().unique().numel() == 1
    bias = torch.zeros(64, device=DEVICE)
    args = routing(logits, 1, VARIANTS["DeepSeek-V3"], bias, (1, 1))
    assert on_triton(MOE_ROUTE, *args)[1].tolist() == [[40]]


@pytest.mark.parametrize("name", VARIANTS)
def test_routing_of_a_row_does_not_depend_on_its_batch(name: str) -> None:
    variant = VARIANTS[name]
    logits = torch.randn(21, 40, device=DEVICE)
    bias = torch.randn(40, device=DEVICE) if variant.biased else None
    grad = torch.randn(21, 5, device=DEVICE)
    results = []
    for rows in (slice(0, 21), slice(0, 1), slice(3, 14)):
        args = routing(logits[rows], 5, variant, bias, variant.groups)
        weights, ids = on_triton(MOE_ROUTE, *args)[:2]
        options = (variant.score, variant.order, variant.normalize, variant.scale)
        back = on_triton(MOE_ROUTE_BACKWARD, grad[rows], logits[rows], ids, *options)
        results.append((rows, (weights, ids, back)))
    whole = results[0][1]
    for rows, part in results[1:]:
        for all_rows, some_rows in zip(whole, part, strict=True):
            assert not bitwise_problems(some_rows, all_rows[rows])


def test_an_expert_chosen_twice_gets_both_gradients() -> None:
    """Replayed ids need not be distinct."""
    logits, grad = torch.randn(3, 6, device=DEVICE), torch.randn(3, 3, device=DEVICE)
    ids = torch.tensor([[1, 1, 4], [5, 0, 5], [2, 2, 2]], device=DEVICE)
    for score in ("sigmoid", "softmax"):
        args = grad, logits, ids, score, "score_first", True, 1.5
        assert not problems(MOE_ROUTE_BACKWARD, *args)


@pytest.mark.parametrize("align", [1, 16])
def test_slots_of_several_programs_and_tiles_are_sorted_stably(align: int) -> None:
    slots = 2 * 128 * 128 - 5  # two tiles for each program, the last one not full
    ids = torch.randint(1030, (slots, 1), device=DEVICE)  # some of them of no expert
    ids[5000:9000] = 7
    assert not problems(MOE_SORT, ids, 1000, align)


@pytest.mark.parametrize("wrong", [-1, 9, 2**40])
def test_ids_out_of_range_are_skipped(wrong: int) -> None:
    """On a GPU nobody looks at the ids before the kernel does."""
    ids = torch.tensor([[3, wrong], [8, 3]], device=DEVICE)
    assert MOE_SORT.absent("triton") is None
    counts, _, gather, inverse = MOE_SORT.implementations["triton"].run(ids, 9, 1)
    assert counts.tolist() == [0, 0, 0, 2, 0, 0, 0, 0, 1]
    assert gather.tolist() == [0, 3, 2, -1]
    assert inverse.tolist() == [[0, -1], [2, 1]]


def permutation(tokens: int, top_k: int, experts: int, align: int) -> tuple[Tensor, Tensor]:
    ids = torch.rand(tokens, experts + 1).argsort(1)[:, :top_k]
    _, _, gather, inverse = sort.reference(ids.to(DEVICE), experts, align)
    return gather, inverse


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_wide_rows_and_many_choices(dtype: torch.dtype) -> None:
    """Several blocks of columns, more choices than a program handles together."""
    gather, inverse = permutation(5, 11, 13, 8)
    x = torch.randn(5, 2056, device=DEVICE).to(dtype)
    rows = torch.randn(len(gather), 2056, device=DEVICE).to(dtype)
    weights = torch.rand(5, 11, device=DEVICE)
    assert not bitwise_problems(
        on_triton(MOE_PERMUTE, x, gather, inverse),
        MOE_PERMUTE.implementations["torch"].run(x, gather, inverse),
    )
    assert not problems(MOE_COMBINE, rows, weights, gather, inverse)
    assert not problems(MOE_COMBINE, rows, None, gather, inverse)
    assert not problems(MOE_COMBINE_BACKWARD, x, rows, weights, gather, inverse)


def test_combining_a_token_does_not_depend_on_the_others() -> None:
    gather, inverse = permutation(9, 3, 7, 1)
    rows, grad = torch.randn(len(gather), 40, device=DEVICE), torch.randn(9, 40, device=DEVICE)
    weights = torch.rand(9, 3, device=DEVICE)
    y = on_triton(MOE_COMBINE, rows, weights, gather, inverse)
    dweights = on_triton(MOE_COMBINE_BACKWARD, grad, rows, weights, gather, inverse)[1]
    for t in (slice(0, 1), slice(4, 8)):
        some = on_triton(MOE_COMBINE, rows, weights[t], gather, inverse[t])
        assert not bitwise_problems(some, y[t])
        args = grad[t], rows, weights[t], gather, inverse[t]
        assert not bitwise_problems(on_triton(MOE_COMBINE_BACKWARD, *args)[1], dweights[t])


def test_rows_out_of_range_are_neither_read_nor_written() -> None:
    """On a GPU nobody looks at ``inverse`` before the kernel does."""
    gather = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    inverse = torch.tensor([[1, 2**30], [0, -7]], dtype=torch.int32, device=DEVICE)
    x = torch.randn(2, 3, device=DEVICE)
    assert MOE_PERMUTE.absent("triton") is None
    assert MOE_COMBINE.absent("triton") is None
    assert torch.equal(MOE_PERMUTE.implementations["triton"].run(x, gather, inverse), x.flip(0))
    assert torch.equal(
        MOE_COMBINE.implementations["triton"].run(x, None, gather, inverse), x.flip(0)
    )
