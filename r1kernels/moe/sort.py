"""Where each expert's rows stand: a stable counting sort of the choices of all tokens.

Slot t·k + j is token t's j-th choice. The order depends on (expert, slot) alone, so it is the same
on every backend and in every run, and nobody asks the device how many rows an expert got.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1kernels.core import check
from r1kernels.core.op import Case, Op
from r1kernels.core.remembered import remembered

MAX_EXPERTS, MAX_ALIGN = 1024, 1 << 16
MAX_ROWS = 2**31 - 1


class Sorted(NamedTuple):
    """The rows of all E experts, one expert after the other, P of them in all.

    Slot t·k + j is the j-th choice of token t; a row is a slot at its place.
    """

    counts: Tensor
    """[E] int32: rows of each expert."""
    offsets: Tensor
    """[E + 1] int32: expert e's rows are [offsets[e], offsets[e + 1]), padding at their end."""
    gather: Tensor
    """[P] int32: the slot of each row, −1 at padding and from offsets[E] on."""
    inverse: Tensor
    """[T, k] int32: the row of each slot, −1 where the slot goes to no expert."""


def moe_sort(ids: Tensor, num_experts: int, *, align: int = 1) -> Sorted:
    """Sort the slots of ``ids`` by expert.

    P is known without looking at the ids: S = T·k rows, or with ``align`` S + min(S, E)·(align − 1)
    rounded down to a multiple of it.

    Args:
        ids: [T, k], int64 or int32, the experts of each token; num_experts and above stand for
            "no expert here" (skipped, as expert parallelism needs it).
        num_experts: E, up to 1024.
        align: each expert's rows begin at a multiple of it (128 for the FP8 kernels), up to 65536.

    Returns:
        ``Sorted(counts [E], offsets [E + 1], gather [P], inverse [T, k])``, int32.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what came.
    """
    _check(ids, num_experts, align)
    return Sorted(*MOE_SORT(ids.long(), num_experts, align))


@remembered
def _check(ids: Tensor, num_experts: int, align: int) -> None:
    check.Shapes("moe_sort")("ids", ids, "T k", check.INTS)
    check_size("moe_sort", num_experts, align)


def check_size(op: str, num_experts: int, align: int) -> None:
    """Padding stays within num_experts·align rows: those bounds keep it in memory."""
    check.between(op, "num_experts", check.count(op, "num_experts", num_experts), 1, MAX_EXPERTS)
    check.between(op, "align", check.count(op, "align", align), 1, MAX_ALIGN)


def padded_rows(slots: int, num_experts: int, align: int) -> int:
    """P of S slots. Written with what symbolic integers can do."""
    if align == 1:
        return slots
    return (slots + torch.sym_min(slots, num_experts) * (align - 1)) // align * align


def reference(ids: Tensor, num_experts: int, align: int) -> tuple[Tensor, ...]:
    slots = ids.flatten().long()
    chosen = (slots >= 0) & (slots < num_experts)
    expert = slots.where(chosen, num_experts)
    counts = expert.new_zeros(num_experts + 1).scatter_add_(0, expert, torch.ones_like(expert))
    room = (counts[:num_experts] + align - 1) // align * align
    offsets = torch.cat([room.new_zeros(1), room.cumsum(0)])
    order = expert.argsort(stable=True)
    first = counts.cumsum(0) - counts  # of each expert, without padding
    rank = torch.arange(len(order), device=ids.device) - first[expert[order]]
    row = torch.where(chosen[order], rank + offsets[expert[order]], -1)
    inverse = torch.empty_like(row).scatter_(0, order, row)
    rows = padded_rows(len(order), num_experts, align)
    gather = row.new_full((rows + 1,), -1)  # the last one takes what is skipped
    gather.scatter_(0, torch.where(row < 0, rows, row), order)
    results = counts[:num_experts], offsets, gather[:rows], inverse.view(ids.shape)
    return tuple(result.int() for result in results)


def fake(ids: Tensor, num_experts: int, align: int) -> tuple[Tensor, ...]:
    rows = padded_rows(ids.shape[0] * ids.shape[1], num_experts, align)
    shapes = ((num_experts,), (num_experts + 1,), (rows,), ids.shape)
    return tuple(ids.new_empty(shape, dtype=torch.int32) for shape in shapes)


def _validate(ids: Tensor, num_experts: int, align: int) -> None:
    check_size("moe_sort", num_experts, align)
    if ids.numel() > MAX_ROWS:
        raise ValueError(f"moe_sort: ids: expected at most 2^31 − 1 slots, got {ids.numel()}")
    if (ids < 0).any():
        t, j = (ids < 0).nonzero()[0].tolist()
        raise ValueError(f"moe_sort: ids[{t}, {j}]: expected ids ≥ 0, got {int(ids[t, j])}")


def _case(
    name: str, tokens: int, top_k: int, experts: int, align: int = 1, *,
    skipped: bool = False, one: bool = False, bench: bool | str = False,
) -> Case:  # fmt: skip
    def make(device: str) -> tuple[Any, ...]:
        rng = torch.Generator().manual_seed(tokens)
        ids = torch.rand(tokens, experts, generator=rng).argsort(1)[:, :top_k].contiguous()
        if skipped:
            ids[ids % 3 == 0] = experts
        if one:
            ids = torch.full_like(ids, experts // 2)
        return ids.to(device), experts, align

    slots = tokens * top_k
    return Case(name, make, bytes=8.0 * slots + 8.0 * slots, tier="bitwise", bench=bench)


CASES = (
    _case("small", 37, 4, 16),
    _case("aligned", 37, 4, 16, 128),
    _case("more experts than slots, aligned", 3, 2, 300, 16),
    _case("skipped slots", 60, 3, 7, skipped=True),
    _case("skipped slots, aligned", 60, 3, 7, 32, skipped=True),
    _case("all on one expert", 200, 1, 9, 8, one=True),
    _case("one token", 1, 8, 256),
    _case("no tokens", 0, 4, 8),
    _case("no tokens, aligned", 0, 4, 8, 128),
    _case("T 4096, E 256, k 8", 4096, 8, 256, bench=True),
    _case("T 4096, E 256, k 8, aligned", 4096, 8, 256, 128, bench="cuda"),
)

MOE_SORT = Op(
    "moe_sort(Tensor ids, SymInt num_experts, SymInt align) "
    "-> (Tensor counts, Tensor offsets, Tensor gather, Tensor inverse)",
    reference=reference,
    fake=fake,
    validate=_validate,
    cases=CASES,
    triton="r1kernels.moe.triton.sort",
)
