"""What a head keeps for its backward pass: by what is free, or as it was told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels.head import kept_memory
from r1kernels.head.linear_logprob_op import TILE_ROWS, tile_row_bytes
from r1kernels.testing.memory import extra_peak

# 56 MiB hold 288 rows of it.
HIDDEN, WEIGHT = torch.empty(4096, 8), torch.empty(49152, 8)


def test_a_large_head_keeps_what_an_eighth_of_the_free_memory_holds(monkeypatch) -> None:
    tile = tile_row_bytes(HIDDEN, WEIGHT)
    monkeypatch.setattr(kept_memory, "available", lambda: 8 * 20 * tile + 7)
    assert kept_memory.rows_that_fit(HIDDEN, WEIGHT) == 20 * TILE_ROWS
    monkeypatch.setattr(kept_memory, "available", lambda: 0)
    assert kept_memory.rows_that_fit(HIDDEN, WEIGHT) == (56 << 20) // tile * TILE_ROWS
    monkeypatch.setattr(kept_memory, "available", lambda: 1 << 50)
    assert kept_memory.rows_that_fit(HIDDEN, WEIGHT) == -(-4096 // TILE_ROWS) * TILE_ROWS


def test_the_limit_that_was_said_holds_until_its_block_ends() -> None:
    tile = tile_row_bytes(HIDDEN, WEIGHT)
    default = kept_memory.rows_that_fit(HIDDEN, WEIGHT)
    with r1kernels.kept_memory(3 * tile):
        assert kept_memory.rows_that_fit(HIDDEN, WEIGHT) == 3 * TILE_ROWS
        with r1kernels.kept_memory(0):
            assert kept_memory.rows_that_fit(HIDDEN, WEIGHT) == 0
        assert kept_memory.rows_that_fit(HIDDEN, WEIGHT) == 3 * TILE_ROWS
    assert kept_memory.rows_that_fit(HIDDEN, WEIGHT) == default


@pytest.mark.parametrize("limit", [-1, 1.5, "1GB", None])
def test_a_limit_is_a_number_of_bytes(limit) -> None:
    said = pytest.raises((ValueError, TypeError), match="kept_memory: limit: expected a")
    with said, r1kernels.kept_memory(limit):
        pass


@pytest.mark.parametrize(
    ("limit", "usage"),
    [
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_a_control_group_leaves_what_is_below_its_limit(tmp_path: Path, limit, usage) -> None:
    (tmp_path / limit).write_text("5000\n")
    (tmp_path / usage).write_text("1200\n")
    assert kept_memory._left(tmp_path) == 3800
    assert kept_memory._left(tmp_path / "none") == float("inf")
    (tmp_path / "memory.max").write_text("max\n")
    assert kept_memory._left(tmp_path) == (3800 if limit != "memory.max" else float("inf"))


def test_some_memory_is_available_here() -> None:
    assert 0 < kept_memory.available() < 1 << 60


ROWS, VOCABULARY = 1536, 16384


def ignoring(share: float) -> Callable[[], Tensor]:
    hidden, weight = (torch.ones(n, 16).bfloat16().requires_grad_() for n in (ROWS, VOCABULARY))
    target = torch.zeros(ROWS).long()
    target[: int(ROWS * share)] = -100
    return lambda: r1kernels.linear_cross_entropy(hidden, weight, target)


def test_memory_for_rows_that_are_ignored_is_never_touched() -> None:
    # Memory is counted in pages of 2 MiB, of which the rows that are left may begin one more.
    whole, quarter = (extra_peak(ignoring, share).peak for share in (0.0, 0.75))
    assert whole - quarter > ROWS * VOCABULARY * 2 / 2  # three quarters of the probabilities
