"""Costs of the tiles of FP8 products: fitted to times, and written where the library reads them."""

from __future__ import annotations

import pytest

from benchmarks import tune_fp8
from benchmarks.tune_fp8 import Costs, Point, Tile


def test_costs_are_found_again() -> None:
    points = [Point(t, b, t * (b * 0.7 + 2.5)) for t, b in ((3, 56), (24, 12), (31, 4), (7, 128))]
    assert tune_fp8.fitted(points) == pytest.approx((0.7, 2.5))


def test_a_rest_is_not_negative() -> None:
    costs = tune_fp8.fitted([Point(1, 10, 9.0), Point(1, 20, 20.0)])
    assert costs.rest == 0
    assert 0.9 < costs.block < 1


@pytest.mark.parametrize(("pairs", "turns"), [((1, 1), 3), ((2, 1), 3), ((1, 2), 3)])
def test_turns(pairs: tuple[int, int], turns: int) -> None:
    assert Tile(128, 192, False, pairs).turns(4096, 2112, 132) == turns


def test_the_table_keeps_its_form() -> None:
    source = tune_fp8.COSTS.read_text()
    tile, costs = Tile(256, 128, False, (1, 2)), Costs(0.72, 1.5)
    new = tune_fp8.written(source, {tile: costs})
    assert "    {256, 128, {1, 2}, false, 0.720, 1.50},\n};\n" in new
    assert new.partition("{\n")[0] == source.partition("{\n")[0]
    for tile in ((*size, pairs) for size in tune_fp8.TILES for pairs in tune_fp8.PAIRS):
        rows, columns, by_column, (high, wide) = tile
        known = f"{{{rows}, {columns}, {{{high}, {wide}}}, {str(by_column).lower()}, "
        assert known in source, tile
