"""moe_permute and moe_combine: against eager indexing, and as each other's transposes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.core import native
from r1kernels.moe.combine import MOE_COMBINE, MOE_COMBINE_BACKWARD
from r1kernels.moe.permute import MOE_PERMUTE

TOKENS, TOP_K, EXPERTS, WIDTH = 19, 3, 7, 40
OURS = (MOE_PERMUTE, MOE_COMBINE, MOE_COMBINE_BACKWARD)
compiled = pytest.mark.skipif(native.load("cpp") is not None, reason="no C++ library")


def sort(align: int = 1, *, skip: bool = False) -> tuple[Tensor, Tensor]:
    ids = torch.rand(TOKENS, EXPERTS).argsort(1)[:, :TOP_K].contiguous()
    if skip:
        ids[ids == 2] = EXPERTS
        ids[4] = EXPERTS
    _, _, gather, inverse = r1kernels.moe_sort(ids, EXPERTS, align=align)
    return gather, inverse


@pytest.fixture(params=["plain", "padded", "skipped slots"])
def slots(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    kind = request.param
    return sort(8 if kind == "padded" else 1, skip=kind == "skipped slots")


def eager(x: Tensor, weights: Tensor, gather: Tensor, inverse: Tensor) -> Tensor:
    """Rows there and back again as a loop over slots, in the order of the choices."""
    rows = torch.stack([x[g // TOP_K] if g >= 0 else 0 * x[0] for g in gather.tolist()])
    out = []
    for t, places in enumerate(inverse.tolist()):
        terms = [rows[p] * weights[t, j] for j, p in enumerate(places) if p >= 0]
        out.append(sum(terms, start=0 * x[0]))
    return torch.stack(out)


def test_formula_and_gradients(slots: tuple[Tensor, Tensor]) -> None:
    x = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(TOKENS, TOP_K, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    expected = eager(x, weights, *slots)
    got = r1kernels.moe_combine(r1kernels.moe_permute(x, *slots), weights, *slots)
    torch.testing.assert_close(got, expected)
    for ours, theirs in zip(
        torch.autograd.grad(got, (x, weights), upstream),
        torch.autograd.grad(expected, (x, weights), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck(slots: tuple[Tensor, Tensor]) -> None:
    rows = torch.randn(len(slots[0]), 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(TOKENS, TOP_K, dtype=torch.float64, requires_grad=True)
    x = torch.randn(TOKENS, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: r1kernels.moe_combine(r, None, *slots), rows)
    assert torch.autograd.gradcheck(
        lambda r, w: r1kernels.moe_combine(r, w, *slots), (rows, weights)
    )
    assert torch.autograd.gradcheck(lambda r: r1kernels.moe_permute(r, *slots), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_transposes(slots: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    """The gradient of one is the other, bit for bit."""
    x = torch.randn(TOKENS, WIDTH).to(dtype).requires_grad_()
    rows = torch.randn(len(slots[0]), WIDTH).to(dtype).requires_grad_()
    permuted, combined = r1kernels.moe_permute(x, *slots), r1kernels.moe_combine(rows, None, *slots)
    (dx,) = torch.autograd.grad(permuted, x, rows)
    (drows,) = torch.autograd.grad(combined, rows, x)
    assert torch.equal(dx, combined)
    assert torch.equal(drows, permuted)


def test_a_token_is_rounded_once() -> None:
    """1 + k small terms that bf16 would lose one by one."""
    rows = torch.tensor([[1.0], [2**-9], [2**-9], [2**-9]], dtype=torch.bfloat16)
    order = torch.arange(4, dtype=torch.int32)
    got = r1kernels.moe_combine(rows, torch.ones(1, 4), order, order[None])
    assert float(got) == 1 + 2**-7  # 1 + 3·2⁻⁹ lies nearer to it than to 1


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_does_not_depend_on_its_batch_or_the_number_of_threads(
    dtype: torch.dtype,
) -> None:
    tokens, width, cut = 200, 1000, 90
    ids = torch.rand(tokens, 16).argsort(1)[:, :5]
    x, grad = (torch.randn(tokens, width).to(dtype) for _ in range(2))
    weights = torch.rand(tokens, 5)

    def run(count: int) -> tuple[Tensor, ...]:
        _, _, gather, inverse = r1kernels.moe_sort(ids[:count].contiguous(), 16)
        slots = gather, inverse
        rows = r1kernels.moe_permute(x[:count], *slots)
        y = MOE_COMBINE(rows, weights[:count], *slots)
        drows, dweights = MOE_COMBINE_BACKWARD(grad[:count], rows, weights[:count], *slots)
        return y, dweights, drows[inverse]

    with r1kernels.using("cpp", *OURS):
        whole = run(tokens)
        torch.set_num_threads(1)
        part = run(cut)
    for few, all_of_them in zip(part, whole, strict=True):
        assert torch.equal(few, all_of_them[:cut])


def test_transformers_43362_the_same_sum_in_every_run() -> None:
    """transformers #43362: index_add_ summed a token's rows in whatever order they came."""
    gather, inverse = sort()
    rows, weights = torch.randn(len(gather), 600), torch.rand(TOKENS, TOP_K)
    results = [r1kernels.moe_combine(rows, weights, gather, inverse) for _ in range(5)]
    assert all(torch.equal(result, results[0]) for result in results)


@compiled
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_a_skipped_slot_does_not_read_its_row_or_weight(fill: float) -> None:
    gather, inverse = sort(skip=True)
    rows = torch.full((len(gather), WIDTH), fill)
    rows[gather < 0] = torch.nan
    weights = torch.full((TOKENS, TOP_K), 1.0)
    weights[inverse < 0] = torch.nan
    with r1kernels.using("cpp", *OURS):
        got = r1kernels.moe_combine(rows, weights, gather, inverse)
        drows, dweights = MOE_COMBINE_BACKWARD(
            torch.ones(TOKENS, WIDTH), rows, weights, gather, inverse
        )
    expected = fill * (inverse >= 0).sum(1, keepdim=True).float().expand(-1, WIDTH)
    assert torch.equal(got, expected)
    assert torch.equal(drows, (gather >= 0).float()[:, None].expand(-1, WIDTH))
    assert torch.equal(dweights, fill * WIDTH * (inverse >= 0).float())


@pytest.mark.parametrize("value", [57, -2])
def test_a_place_out_of_range_is_named(value: int) -> None:
    gather, inverse = sort()
    bad_gather, bad_inverse = gather.clone(), inverse.clone()
    bad_gather[2] = bad_inverse.view(-1)[2] = value
    expected = r"{0}: {1}\[2\]: expected 0 ≤ {1} < 57, or -1 for none, got {2}"
    message = expected.format("moe_permute", "gather", value)
    with pytest.raises(ValueError, match=message):
        r1kernels.moe_permute(torch.randn(TOKENS, 8), bad_gather, inverse)
    message = expected.format("moe_combine", "inverse", value)
    with pytest.raises(ValueError, match=message):
        r1kernels.moe_combine(torch.randn(57, 8), None, gather, bad_inverse)


@compiled
@pytest.mark.parametrize("argument", ["gather", "inverse"])
@pytest.mark.parametrize("value", [10**6, -2])
def test_the_kernels_guard_themselves(argument: str, value: int) -> None:
    """The gradients' arguments are checked nowhere else."""
    gather, inverse = sort()
    (gather if argument == "gather" else inverse.view(-1))[2] = value
    rows, weights = torch.randn(len(gather), 8), torch.rand(TOKENS, TOP_K)
    with pytest.raises(RuntimeError, match=f"{argument}: expected 0 ≤ {argument} < 57 or -1, got"):
        torch.ops.r1_cpp.moe_combine_backward(
            torch.randn(TOKENS, 8), rows, weights, gather, inverse
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.zeros(4, 8).half()[0]}, r"rows: expected shape \[P, H\], got \[8\]"),
        ({"rows": torch.zeros(4, 8).int()}, "rows: expected dtype float32 or .*, got int32"),
        ({"rows": torch.zeros(5, 8)}, r"gather: expected P = 5 in shape \[P\], got \[4\]"),
        ({"gather": torch.arange(4)}, "gather: expected dtype int32, got int64"),
        ({"inverse": torch.zeros(2, 2)}, "inverse: expected dtype int32, got float32"),
        ({"weights": torch.ones(4)}, r"weights: expected shape \[T, k\], got \[4\]"),
        ({"weights": torch.ones(2, 2).bfloat16()}, "weights: expected dtype float32, got bfloat16"),
    ],
)
def test_bad_input_is_named(change: dict[str, Tensor], message: str) -> None:
    order = torch.arange(4, dtype=torch.int32)
    arguments = {
        "rows": torch.zeros(4, 8), "weights": torch.ones(2, 2), "gather": order,
        "inverse": order.view(2, 2), **change,
    }  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=f"moe_combine: {message}"):
        r1kernels.moe_combine(**arguments)
