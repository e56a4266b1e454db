"""Every shape and pairing of tiles of the FP8 products in CUDA C++ gives the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from r1kernels.core.op import OPS
from r1kernels.fp8 import gemm
from r1kernels.testing.compare import Truth, as_tuple, bitwise_problems
from r1kernels.testing.poison import poisoned
from tests.emulated_cuda import Kernels
from tests.fp8.test_cuda_fp8 import HOPPER, operands

TILES = ((256, 128), (128, 192), (128, 128))
BY_COLUMN = ((128, 128),)
PAIRS = ((1, 1), (1, 2), (2, 1))
CHOOSE = (0, 0, 1, 1, False, 0)
pytestmark = pytest.mark.parametrize("kernels", ["gpu" if HOPPER else "sm_90"], indirect=True)


class Forced:
    """The products with tiles of one's own choice."""

    def __init__(self, kernels: Kernels) -> None:
        self.ops, self.device = kernels

    def __call__(
        self, op: str, *args: Any, tile: tuple[int, int], pairs: tuple[int, int] = (1, 1),
        direct: bool = False,
    ) -> Tensor:  # fmt: skip
        self.ops.fp8_force_tile(*tile, *pairs, direct, 0)
        with poisoned():
            return getattr(self.ops, op)(*args)


@pytest.fixture
def forced(kernels: Kernels) -> Iterator[Forced]:
    yield Forced(kernels)
    kernels.ops.fp8_force_tile(*CHOOSE)


def check(forced: Forced, op: str, args: tuple[Any, ...], tiles: Any = TILES) -> None:
    """All tiles and pairs of ``op`` have the bits of the first one, which is right."""
    first = forced(op, *args, tile=(128, 128), direct=True)
    case = OPS[op].cases[0]
    assert not Truth(OPS[op], case, args).check("cuda", as_tuple(first)).problems
    for tile in tiles:
        for pairs in PAIRS:
            assert not bitwise_problems(forced(op, *args, tile=tile, pairs=pairs), first), (
                tile, pairs)  # fmt: skip


@pytest.mark.parametrize(
    ("m", "n", "k", "out"),
    [
        (600, 400, 640, torch.bfloat16),  # whole tiles, ragged ones, and pairs outside
        (300, 392, 200, torch.float16),
        (200, 264, 900, torch.float32),
        (513, 131, 100, torch.bfloat16),  # rows of the output that no copy can store
    ],
)
def test_one_matrix(forced: Forced, m: int, n: int, k: int, out: torch.dtype) -> None:
    bias = torch.randn(n, generator=torch.Generator().manual_seed(1)).to(forced.device, out)
    given = operands(Kernels(forced.ops, forced.device), m, n, k, gemm.SQUARES)
    check(forced, "fp8_gemm", (*given, bias, out, False))


def test_columns_with_scales_of_their_own(forced: Forced) -> None:
    given = operands(Kernels(forced.ops, forced.device), 300, 400, 700, gemm.ROWS)
    for out in (torch.float32, torch.bfloat16):
        check(forced, "fp8_gemm", (*given, None, out, False), BY_COLUMN)


@pytest.mark.parametrize("name", ["contiguous", "masked", "dgrad, odd, fp32, aligned", "row-wise"])
def test_experts(forced: Forced, name: str) -> None:
    case = next(case for case in OPS["fp8_grouped_gemm"].cases if case.name == name)
    check(forced, "fp8_grouped_gemm", case.make(forced.device))


@pytest.mark.parametrize("name", ["uneven", "odd sizes", "rows beyond"])
def test_gradients_of_experts(forced: Forced, name: str) -> None:
    case = next(case for case in OPS["fp8_grouped_wgrad"].cases if case.name == name)
    check(forced, "fp8_grouped_wgrad", case.make(forced.device), BY_COLUMN)


@pytest.mark.parametrize("pairs", PAIRS)
def test_a_product_is_added_where_copies_store_it(forced: Forced, pairs: tuple[int, int]) -> None:
    given = operands(Kernels(forced.ops, forced.device), 200, 400, 300, gemm.ROWS)
    how: dict[str, Any] = {"tile": (128, 128), "pairs": pairs}
    product = forced("fp8_gemm", *given, None, torch.float32, False, **how)
    before = torch.randn(200, 400, generator=torch.Generator().manual_seed(0)).to(forced.device)
    there = before.clone()
    forced("fp8_gemm_", there, *given, False, **how)
    assert not bitwise_problems(there, before + product)


@pytest.mark.parametrize("rows", [200, 333])
def test_scales_may_lie_block_after_block(forced: Forced, rows: int) -> None:
    a, scale, *b = operands(Kernels(forced.ops, forced.device), rows, 140, 600, gemm.SQUARES)
    memory = scale.new_full((scale.shape[1], (rows + 3) // 4 * 4), float("nan"))
    memory[:, :rows] = scale.T
    outputs = [
        forced("fp8_gemm", a, of_a, *b, None, torch.float32, False, tile=(256, 128))
        for of_a in (scale, memory.T[:rows])
    ]
    assert not bitwise_problems(*outputs)
