"""What the cases of ``logprob`` are too small for: rows that several programs share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from r1kernels import triton
from r1kernels.core.op import Case
from r1kernels.head.logprob import LOGPROB, LOGPROB_BACKWARD, LOGPROB_BACKWARD_
from r1kernels.testing.compare import Truth, bitwise_problems

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    DEVICE == "cpu" and not triton.INTERPRETED, reason="neither a GPU nor Triton's interpreter"
)

COLUMNS = 66_000  # three programs a row


def wide_rows() -> tuple[Any, ...]:
    logits = 3 * torch.randn(3, COLUMNS)
    logits[1, : COLUMNS // 2] = -torch.inf  # nothing at all for the first program
    target = torch.tensor([0, COLUMNS - 1, 40_000])
    temperature = torch.tensor([0.7, 1.0, 1.3])
    tensors = (logits.bfloat16(), target, temperature)
    return *(tensor.to(DEVICE) for tensor in tensors), 1.0, None, True


def test_wide_rows_equal_the_reference() -> None:
    args = wide_rows()
    case = Case("wide", lambda device: args)
    with LOGPROB.using("triton"), LOGPROB_BACKWARD.using("triton"):
        logprob, entropy, lse = LOGPROB(*args)
        parity = Truth(LOGPROB, case, args).check("triton", (logprob, entropy, lse))
        assert not parity.problems
        logits, target, *options, _ = args
        weights = torch.tensor([1.0, 0.0, -2.0], device=DEVICE)
        back = (weights, weights.flip(0), logits, target, lse, entropy, *options)
        gradient = LOGPROB_BACKWARD(*back)
        parity = Truth(LOGPROB_BACKWARD, case, back).check("triton", gradient)
        assert not parity.problems
    with LOGPROB_BACKWARD_.using("triton"):
        LOGPROB_BACKWARD_(*back)
    assert not bitwise_problems(logits, gradient)


def test_a_wide_row_does_not_depend_on_its_place() -> None:
    logits, target, temperature, *options = wide_rows()
    with LOGPROB.using("triton"):
        forth = LOGPROB(logits, target, temperature, *options)
        back = LOGPROB(logits.flip(0), target.flip(0), temperature.flip(0), *options)
    for one, other in zip(forth, back, strict=True):
        assert not bitwise_problems(other.flip(0), one)


@pytest.mark.parametrize("target", [-1, 9])
def test_a_target_out_of_range_gives_nan_and_reads_nothing(target: int) -> None:
    """On a GPU nobody looks at the targets before the kernel does."""
    logits = torch.randn(2, 9, device=DEVICE)
    targets = torch.tensor([3, target], device=DEVICE)
    run = LOGPROB.implementations["triton"].run if LOGPROB.absent("triton") is None else None
    assert run is not None
    logprob, _, lse = run(logits, targets, None, 1.0, None, False)
    assert logprob.isnan().tolist() == [False, True]
    assert lse.isfinite().all()
