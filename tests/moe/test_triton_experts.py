"""Products by expert in Triton: which tile has which rows. Parity is in test_ops."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

import r1kernels
from r1kernels.core.op import Op
from r1kernels.moe import sort
from r1kernels.moe.experts import MOE_EXPERTS, MOE_EXPERTS_BACKWARD
from r1kernels.moe.grouped_mm import GROUPED_MM, GROUPED_MM_BACKWARD
from r1kernels.moe.triton import experts as moe_experts
from r1kernels.moe.triton import grouped_mm
from r1kernels.moe.triton.grouped_mm_tiles import most_tiles, rows_of_tile
from r1kernels.testing.compare import Truth
from r1kernels.testing.poison import poisoned
from r1kernels.triton import INTERPRETED, descriptors

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    not (INTERPRETED or DEVICE == "cuda"), reason="needs a GPU or TRITON_INTERPRET=1"
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
OPS = (GROUPED_MM, GROUPED_MM_BACKWARD, MOE_EXPERTS, MOE_EXPERTS_BACKWARD)


@pytest.fixture(autouse=True)
def on_triton() -> Iterator[None]:
    with r1kernels.using("triton", *OPS):
        yield


def offsets_of(*counts: int) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0, dtype=torch.int32).to(DEVICE)


@triton.jit
def each_tile(offsets, found, experts, rows, ROWS: tl.constexpr, EXPERTS: tl.constexpr):
    """What every program of a grid is told: [expert, first row, row after the last]."""
    tile = tl.program_id(0)
    expert, first, last = rows_of_tile(offsets, tile, experts, rows, ROWS, EXPERTS)
    tl.store(found + tile * 3, expert)
    tl.store(found + tile * 3 + 1, first)
    tl.store(found + tile * 3 + 2, last)


@pytest.mark.parametrize(
    ("counts", "rows"),
    [
        pytest.param((5, 0, 70, 1, 33, 0), 109, id="uneven"),
        pytest.param((0, 0, 130, 0), 130, id="all on one"),
        pytest.param((0, 0, 0), 20, id="all on none"),
        pytest.param((0, 1, 0, 1), 2, id="two rows"),
        pytest.param((3, 16, 0, 17), 80, id="rows beyond"),
        pytest.param((16, 32, 48), 96, id="whole tiles"),
        pytest.param((1,) * 300, 301, id="300 experts"),
        pytest.param((17,) * 7, 119, id="one row over"),
    ],
)
def test_every_row_is_in_one_tile_of_its_expert(counts: tuple[int, ...], rows: int) -> None:
    height = 16
    expected = [
        [expert, first, last]
        for expert, (start, last) in enumerate(pairwise([*offsets_of(*counts).tolist(), rows]))
        for first in range(start, last, height)
    ]
    experts = len(counts)
    tiles = torch.full((most_tiles(rows, experts, height), 3), -1, dtype=torch.int32, device=DEVICE)
    each_tile[(len(tiles),)](
        offsets_of(*counts), tiles, experts, rows, ROWS=height,
        EXPERTS=triton.next_power_of_2(experts),
    )  # fmt: skip
    found = tiles.tolist()
    assert found[: len(expected)] == expected
    assert all(first >= last for _, first, last in found[len(expected) :])


def test_the_grid_holds_the_worst_spread_of_rows_and_no_more() -> None:
    for rows, experts in product(range(12), (1, 2, 3)):
        spreads = product(range(rows + 1), repeat=experts)
        needed = [
            sum(-(-count // 4) for count in (*counts, rows - sum(counts)))
            for counts in spreads
            if sum(counts) <= rows
        ]
        assert most_tiles(rows, experts, 4) == max(needed)


def test_offsets_past_the_last_row_write_nothing_there() -> None:
    """On a GPU nobody looks at the values of offsets beforehand."""
    room = torch.ones(30, 8, device=DEVICE)
    out = grouped_mm.grouped_mm(room[:20], torch.eye(8, device=DEVICE)[None], offsets_of(40), False)
    assert torch.equal(out, room[:20])
    assert grouped_mm.grouped_mm_backward(room[:20], room[:20], offsets_of(40)).eq(20).all()


class Problem(NamedTuple):
    """Arguments of moe_experts but the last, and an upstream gradient."""

    grad: Tensor
    inputs: tuple[Tensor, ...]

    def both_passes(self, frozen: bool = False) -> tuple[Tensor, ...]:
        y, h = MOE_EXPERTS(*self.inputs, True)
        return y, h, *MOE_EXPERTS_BACKWARD(self.grad, *self.inputs, h, frozen)


def problem(
    tokens: int, dtype: torch.dtype, *, align: int = 1, skip_first: bool = False
) -> Problem:
    """The first tokens of one and the same batch, 5 experts, 2 a token."""
    rng = torch.Generator().manual_seed(0)
    grad, x = (torch.randn(40, 72, generator=rng)[:tokens].to(DEVICE, dtype) for _ in range(2))
    gate_up = torch.randn(5, 2 * 40, 72, generator=rng).to(DEVICE, dtype) / 8
    down = torch.randn(5, 72, 40, generator=rng).to(DEVICE, dtype) / 6
    weights = torch.rand(40, 2, generator=rng)[:tokens].to(DEVICE)
    ids = torch.rand(40, 5, generator=rng).argsort(1)[:tokens, :2]
    if skip_first:
        ids[0] = 5
    _, *layout = sort.reference(ids, 5, align)
    return Problem(grad, (x, gate_up, down, weights, *(tensor.to(DEVICE) for tensor in layout)))


@DTYPES
def test_a_row_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    y, _, dx, *_, dweights = problem(40, dtype).both_passes()
    for tokens in (1, 13):
        part = problem(tokens, dtype).both_passes()
        for some, every in zip((part[0], part[2], part[5]), (y, dx, dweights), strict=True):
            assert torch.equal(some, every[:tokens])


@DTYPES
def test_an_experts_gradient_depends_on_its_rows_alone(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(90, 40, generator=rng).to(DEVICE, dtype) for _ in range(2))
    among_others = GROUPED_MM_BACKWARD(left, right, offsets_of(13, 70, 0, 7))[1]
    alone = GROUPED_MM_BACKWARD(left[13:83], right[13:83], offsets_of(70))[0]
    assert torch.equal(among_others, alone)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_padding_holds_zeros_whatever_the_first_token_is(frozen: bool) -> None:
    """Padding has no token; where its rows are read nevertheless, it must not show."""
    grad, inputs = problem(7, torch.float32, align=16, skip_first=True)
    expected = Problem(grad, inputs).both_passes(frozen)
    assert not expected[1][inputs[5] < 0].any()
    grad[0] = inputs[0][0] = torch.nan
    with poisoned():
        got = Problem(grad, inputs).both_passes(frozen)
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_half_precision(op: Op) -> None:
    case = next(case for case in op.cases if case.name == "bf16")
    args = [
        arg.half() if isinstance(arg, Tensor) and arg.dtype == torch.bfloat16 else arg
        for arg in case.make(DEVICE)
    ]
    assert not Truth(op, case, args).check("triton", op(*args)).problems


@pytest.mark.parametrize("transposed", [False, True])
def test_weights_past_two_to_the_31st_element(transposed: bool) -> None:
    experts, columns = 2**10 + 1, 2**15  # few experts: a program scans all of their offsets
    shape = (64, columns) if transposed else (columns, 64)
    weight = torch.empty(experts, *shape, dtype=torch.float16, device=DEVICE)
    weight[-1] = (torch.arange(64 * columns, device=DEVICE) % 2048).view(shape)
    x = torch.eye(64, device=DEVICE)[3:4].half()
    offsets = torch.zeros(experts + 1, dtype=torch.int32, device=DEVICE)
    offsets[-1] = 1
    expected = weight[-1, 3] if transposed else weight[-1, :, 3]
    assert torch.equal(GROUPED_MM(x, weight, offsets, transposed)[0], expected)


def test_rows_past_two_to_the_31st_element(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row with an expert, so far down that its h begins there; all others are never touched."""
    inner, rows = 512, 2**21 + 1
    rng = torch.Generator().manual_seed(0)
    grad, x = (torch.randn(1, 16, generator=rng).to(DEVICE).half() for _ in range(2))
    gate_up = torch.randn(1, 2 * inner, 16, generator=rng).to(DEVICE).half()
    down = torch.randn(1, 16, inner, generator=rng).to(DEVICE).half()
    weights = torch.rand(1, 1, generator=rng).to(DEVICE)

    def run(row: int) -> tuple[Tensor, ...]:
        offsets = torch.tensor([row, row + 1], dtype=torch.int32, device=DEVICE)
        gather = torch.full((row + 1,), -1, dtype=torch.int32, device=DEVICE)
        gather[row] = 0
        inputs = x, gate_up, down, weights, offsets, gather, offsets[:1].view(1, 1)
        y, h = moe_experts.moe_experts(*inputs, True)
        return y, h[row], *moe_experts.moe_experts_backward(grad, *inputs, h, False)

    monkeypatch.setattr(descriptors, "parameters", lambda *_: None)  # they would move all rows
    expected = run(0)
    for module in (grouped_mm, moe_experts):
        monkeypatch.setattr(module, "most_tiles", lambda *_: 1)
    assert all(map(torch.equal, run(rows - 1), expected))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("beyond", [0, 70])
def test_descriptors_give_the_bits_of_rows(
    monkeypatch: pytest.MonkeyPatch, transposed: bool, beyond: int
) -> None:
    """Of groups that end within a tile, before NaN of the next one, and where nobody has rows."""
    rng = torch.Generator().manual_seed(0)
    counts = (13, 0, 70, 1, 48)
    rows, depth, width = sum(counts) + beyond, 72, 136
    x, grad = (torch.randn(rows, size, generator=rng) for size in (depth, width))
    x[83] = grad[83] = torch.nan  # the only row of its expert
    shape = (depth, width) if transposed else (width, depth)
    weight = torch.randn(len(counts), *shape, generator=rng)
    x, grad, weight = (tensor.to(DEVICE, torch.bfloat16) for tensor in (x, grad, weight))
    offsets = offsets_of(*counts)

    def results() -> tuple[Tensor, ...]:
        with poisoned():
            out = GROUPED_MM(x, weight, offsets, transposed)
            dx = GROUPED_MM(grad, weight, offsets, not transposed)
            return out, dx, GROUPED_MM_BACKWARD(grad, x, offsets)

    by_blocks = results()
    assert not by_blocks[0][83].isfinite().any()
    assert by_blocks[0][82].isfinite().all()
    assert by_blocks[0][84:].isfinite().all()
    assert not by_blocks[0][sum(counts) :].any()
    monkeypatch.setattr(descriptors, "parameters", lambda *_: None)
    for found, expected in zip(by_blocks, results(), strict=True):
        assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_experts_by_descriptors_give_the_bits_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    _, inputs = problem(40, torch.bfloat16, align=16, skip_first=True)
    both = []
    for _ in range(2):
        with poisoned():
            both.append(MOE_EXPERTS(*inputs, True))
        monkeypatch.setattr(descriptors, "parameters", lambda *_: None)
    assert all(map(torch.equal, *both))
