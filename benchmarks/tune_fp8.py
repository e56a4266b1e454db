"""Measures what the tiles of the CUDA FP8 products cost on this GPU, and writes the table.

A multiprocessor that has ``turns`` tiles, each over ``blocks`` of 128 of the reduction, takes
turns · (blocks · block + rest): each kind of tile is timed in products of several shapes, and the
two costs are those that fit its times best. ``csrc/cuda/fp8/choice.h`` chooses by them, after the
next build.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from r1kernels.core import native
from r1kernels.core.op import OPS
from r1kernels.fp8.gemm import ROWS, SHAPES, SQUARES
from r1kernels.testing.timing import interleaved

COSTS = Path(__file__).parents[1] / "csrc/cuda/fp8/costs.h"
ROWS_OF_A = 4096
SECONDS = 0.05  # of timing, for each tile and shape
TILES = ((256, 128, False), (128, 192, False), (128, 128, False), (128, 128, True))
PAIRS = ((1, 1), (1, 2), (2, 1))
# N × K of products whose scales change with every column: gradients of weights.
BY_COLUMN = ((4096, 2048), (7168, 4096), (4096, 8192))


class Tile(NamedTuple):
    """Of ``rows`` × ``columns``, alone or beside another one, and whether columns have scales."""

    rows: int
    columns: int
    by_column: bool
    pairs: tuple[int, int]

    def turns(self, rows: int, columns: int, multiprocessors: int) -> int:
        """Tiles of the busiest multiprocessor."""
        high, wide = self.rows * self.pairs[0], self.columns * self.pairs[1]
        steps = -(-rows // high) * -(-columns // wide)
        return -(-steps // (multiprocessors // (self.pairs[0] * self.pairs[1])))


class Point(NamedTuple):
    turns: int
    blocks: int
    microseconds: float


class Costs(NamedTuple):
    """Microseconds of a block of the reduction, and of the rest of a tile."""

    block: float
    rest: float


def can_run() -> bool:
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    return hopper and native.load("cuda") is None


def tune() -> None:
    """Write the costs of all tiles; the library's next build chooses by them."""
    points: dict[Tile, list[Point]] = {}
    tiles = [Tile(*tile, pairs) for tile in TILES for pairs in PAIRS]
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    for by_column, shapes in ((False, SHAPES), (True, BY_COLUMN)):
        for columns, depth in shapes:
            here = [tile for tile in tiles if tile.by_column == by_column]
            times = measure(here, columns, depth)
            print(f"{ROWS_OF_A} × {columns} × {depth}:")
            for tile, seconds in zip(here, times, strict=True):
                turns = tile.turns(ROWS_OF_A, columns, multiprocessors)
                points.setdefault(tile, []).append(Point(turns, -(-depth // 128), seconds * 1e6))
                rate = 2e-12 * ROWS_OF_A * columns * depth / seconds
                print(f"  {tile.rows} × {tile.columns}, {tile.pairs}: {rate:.0f} TFLOP/s")
    COSTS.write_text(written(COSTS.read_text(), {t: fitted(p) for t, p in points.items()}))
    print(f"{COSTS}: build the library again")


def measure(tiles: Sequence[Tile], columns: int, depth: int) -> list[float]:
    """Seconds of a product with each of ``tiles``."""
    op = torch.ops.r1_cuda
    args = operands(columns, depth, tiles[0].by_column)

    def call(tile: Tile) -> Any:
        op.fp8_force_tile(tile.rows, tile.columns, *tile.pairs, False, 0)
        return op.fp8_gemm(*args)

    try:
        times = interleaved(
            {str(tile): partial(call, tile) for tile in tiles}, device="cuda", seconds=SECONDS
        )
    finally:
        op.fp8_force_tile(0, 0, 1, 1, False, 0)
    return list(times.values())


def operands(columns: int, depth: int, by_column: bool) -> tuple[Any, ...]:
    def quantized(rows: int, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.randn(rows, depth, device="cuda")
        data, scale, *_ = OPS["fp8_quantize"](values, None, 1, *block, False, False)
        return data, scale

    of_b = ROWS if by_column else SQUARES
    given = *quantized(ROWS_OF_A, ROWS), *quantized(columns, of_b)
    return *given, None, torch.float32 if by_column else torch.bfloat16, False


def fitted(points: Iterable[Point]) -> Costs:
    """By least squares of the relative errors; a rest is not negative."""
    rows = [(p.turns * p.blocks / p.microseconds, p.turns / p.microseconds) for p in points]
    a = torch.tensor(rows, dtype=torch.float64)
    block, rest = torch.linalg.lstsq(a, torch.ones(len(rows), 1, dtype=torch.float64))[0].flatten()
    if rest < 0:
        block, rest = 1 / a[:, 0].mean(), rest * 0
    return Costs(block.item(), rest.item())


def written(source: str, costs: dict[Tile, Costs]) -> str:
    """``source`` with the table of ``costs`` in place of its own."""
    head, _, tail = source.partition("kTileCosts[] = {\n")
    lines = [
        f"    {{{t.rows}, {t.columns}, {{{t.pairs[0]}, {t.pairs[1]}}}, {str(t.by_column).lower()}, "
        f"{c.block:.3f}, {c.rest:.2f}}},\n"
        for t, c in costs.items()
    ]
    return head + "kTileCosts[] = {\n" + "".join(lines) + tail[tail.index("};") :]
