"""Invariants of moe_sort, on every backend that runs here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import r1kernels
from r1kernels.moe.sort import MOE_SORT, Sorted, padded_rows

BACKENDS = [name for name in ("torch", "cpp") if MOE_SORT.absent(name) is None]


@st.composite
def choices(draw: Any) -> tuple[Tensor, int, int]:
    """(ids, num_experts, align): few experts with many slots, or the reverse; some skipped."""
    experts, top_k = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    tokens, align = draw(st.integers(0, 60)), draw(st.sampled_from([1, 2, 8, 128]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    used = draw(st.integers(1, experts + 3))  # ids from num_experts on stand for none
    return torch.randint(used, (tokens, top_k), generator=rng), experts, align


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(arguments=choices())
def test_invariants(backend: str, arguments: tuple[Tensor, int, int]) -> None:
    ids, experts, align = arguments
    with r1kernels.using(backend, MOE_SORT):
        found = r1kernels.moe_sort(ids, experts, align=align)
    check_sorted(found, ids, experts, align)


def check_sorted(found: Sorted, ids: Tensor, experts: int, align: int) -> None:
    slots, gather, inverse = ids.flatten(), found.gather.long(), found.inverse.flatten().long()
    there = slots < experts
    assert found.counts.tolist() == slots[there].bincount(minlength=experts).tolist()
    offsets = found.offsets.tolist()
    assert offsets[0] == 0
    assert all(offset % align == 0 for offset in offsets)
    assert len(gather) == padded_rows(len(slots), experts, align) >= offsets[-1]
    for expert, count in enumerate(found.counts.tolist()):
        begin, end = offsets[expert : expert + 2]
        assert end - begin == -(-count // align) * align
        assert gather[begin : begin + count].tolist() == (slots == expert).nonzero()[:, 0].tolist()
        assert (gather[begin + count : end] == -1).all()
    assert (gather[offsets[-1] :] == -1).all()
    assert (inverse[~there] == -1).all()
    assert torch.equal(gather[inverse[there]], there.nonzero()[:, 0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_slots_are_cut_among_threads_without_a_trace(backend: str, threads: int) -> None:
    ids = torch.randint(20, (2500, 8))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with r1kernels.using(backend, MOE_SORT):
            check_sorted(r1kernels.moe_sort(ids, 18, align=128), ids, 18, 128)
    finally:
        torch.set_num_threads(before)


def test_int32_ids_are_as_good() -> None:
    ids = torch.randint(9, (30, 3))
    for a, b in zip(r1kernels.moe_sort(ids, 8), r1kernels.moe_sort(ids.int(), 8), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.tensor([[0, 1], [2, -1]])}, r"ids\[1, 1\]: expected ids ≥ 0, got -1"),
        ({"ids": torch.zeros(4).long()}, r"ids: expected shape \[T, k\], got \[4\]"),
        ({"ids": torch.zeros(2, 2)}, "ids: expected dtype int64 or int32, got float32"),
        ({"num_experts": 0}, "num_experts: expected a whole number, 1 or more, got 0"),
        ({"align": 0}, "align: expected a whole number, 1 or more, got 0"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    arguments = {"ids": torch.zeros(2, 2).long(), "num_experts": 4, **change}
    with pytest.raises((ValueError, TypeError), match=f"moe_sort: {message}"):
        r1kernels.moe_sort(**arguments)
