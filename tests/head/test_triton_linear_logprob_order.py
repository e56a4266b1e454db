"""The order of linear_logprob's rows in Triton: a stable partition, and where gradients are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from r1kernels import triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    not (triton.INTERPRETED or DEVICE == "cuda"), reason="needs a GPU or TRITON_INTERPRET=1"
)
IGNORED = -100


def rows_of(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(target, keep, dlogprob): a third of each is ignored, not kept, 0."""
    rng = torch.Generator().manual_seed(count)
    target, keep, dlogprob = (torch.randint(3, (count,), generator=rng) for _ in range(3))
    target = torch.where(target == 0, IGNORED, target)
    return target.to(DEVICE), (keep > 0).to(DEVICE), dlogprob.float().to(DEVICE)


def ordered(
    target: Tensor, keep: Tensor | None, dlogprob: Tensor, compact: bool, step: int = 16
) -> tuple[list[int], list[int], list[int]]:
    from r1kernels.head.triton.linear_logprob import KEPT_HERE, Order

    buffer = torch.zeros(8, dtype=torch.int64, device=DEVICE)
    buffer[7] = KEPT_HERE
    order = Order.of(
        target,
        keep,
        IGNORED,
        buffer.view(torch.uint8),
        KEPT_HERE,
        (dlogprob, None),
        40,
        step,
        compact=compact,
    )
    live = int(order.counts[2])
    assert order.blocks is not None
    return order.rows.tolist(), order.counts.tolist(), order.blocks[:live].tolist()


@pytest.mark.parametrize("count", [1, 70, 4096, 9000])
@pytest.mark.parametrize("compact", [False, True], ids=["all", "compact"])
def test_rows_are_partitioned_in_their_order(count: int, compact: bool) -> None:
    target, keep, dlogprob = rows_of(count)
    valid = target != IGNORED
    wanted = valid & keep & ((dlogprob != 0) if compact else True)
    expected = torch.argsort(2 - valid.int() - wanted.int(), stable=True)
    rows, (wanted_rows, valid_rows, _, kept_rows), _ = ordered(target, keep, dlogprob, compact)
    assert rows == expected.tolist()
    assert (wanted_rows, valid_rows) == (int(wanted.sum()), int(valid.sum()))
    assert kept_rows == min(wanted_rows, 40)


def test_without_keep_every_valid_row_is_wanted() -> None:
    target, _, dlogprob = rows_of(70)
    _, (wanted_rows, valid_rows, *_), _ = ordered(target, None, dlogprob, False)
    assert wanted_rows == valid_rows == int((target != IGNORED).sum())


def test_blocks_are_those_in_which_a_row_has_a_gradient() -> None:
    target = torch.ones(9000, dtype=torch.int64, device=DEVICE)
    dlogprob = torch.zeros(9000, device=DEVICE)
    dlogprob[[3, 70, 71, 4100, 8999]] = 1
    dlogprob[200] = torch.nan
    *_, blocks = ordered(target, None, dlogprob, False, step=64)
    assert blocks == [0, 64, 192, 4096, 8960]


def test_another_backends_buffer_holds_nothing() -> None:
    from r1kernels.head.triton.linear_logprob import KEPT_HERE, Order

    target, _, dlogprob = rows_of(70)
    buffer = torch.zeros(64, dtype=torch.uint8, device=DEVICE)
    order = Order.of(target, None, IGNORED, buffer, KEPT_HERE, (dlogprob, None), 70)
    assert int(order.counts[3]) == 0
