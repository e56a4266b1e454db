"""What the CUDA kernels compute: on the GPU, and without one, compiled for tests/cuda_emulator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from r1kernels.core.op import OPS, Case, Op
from r1kernels.testing.compare import Truth, as_tuple, bitwise_problems
from r1kernels.testing.poison import poisoned
from tests.emulated_cuda import Kernels

CASES = [
    pytest.param(OPS[name], case, id=f"{name}-{case.name}")
    for name in ("logprob", "logprob_backward")
    for case in OPS[name].cases
    if not case.bench
]
OPTIONS = (None, 1.0, None)
# Columns, for clusters of 2 blocks (odd), of 8 (the vocabulary of Qwen), and for no cluster.
TWO_BLOCKS, EIGHT_BLOCKS, TOO_MANY = 30011, 151936, 900001


@pytest.mark.parametrize(("op", "case"), CASES)
def test_equals_the_reference(kernels: Kernels, op: Op, case: Case) -> None:
    args = case.make(kernels.device)
    with poisoned():
        outputs = as_tuple(getattr(kernels.ops, op.name)(*args))
    assert not Truth(op, case, args).check("cuda", outputs).problems


def rows_of(columns: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    logits = (4 * torch.randn(3, columns)).to(device, dtype)
    return logits, torch.tensor([0, columns // 2, columns - 1], device=device)


def upstream(device: str) -> tuple[Tensor, Tensor]:
    """Gradients of logprob and entropy for three rows, the last of which has none."""
    return torch.tensor([1.0, -2.0, 0.0]).to(device), torch.tensor([0.1, 0.0, 0.0]).to(device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("columns", [TWO_BLOCKS, EIGHT_BLOCKS, TOO_MANY])
def test_large_vocabularies(kernels: Kernels, columns: int, dtype: torch.dtype) -> None:
    logits, target = rows_of(columns, dtype, kernels.device)
    got = kernels.ops.logprob(logits, target, *OPTIONS, True)
    exact = OPS["logprob"].implementations["torch"].run(logits.double(), target, *OPTIONS, True)
    for output, truth in zip(got, exact, strict=True):
        torch.testing.assert_close(output.double(), truth, rtol=1e-6, atol=1e-6)


def moved(row: Tensor, by: int) -> Tensor:
    """The same row `by` elements further in memory, and so at another place between 16 bytes."""
    room = row.new_full((row.numel() + by,), torch.nan)
    room[by:] = row.flatten()
    return room[by:].view(row.shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_row_does_not_depend_on_where_it_lies(kernels: Kernels, dtype: torch.dtype) -> None:
    logits, target = rows_of(TWO_BLOCKS, dtype, kernels.device)
    above = upstream(kernels.device)
    outputs = kernels.ops.logprob(logits, target, *OPTIONS, True)
    gradient = kernels.ops.logprob_backward(*above, logits, target, *outputs[:0:-1], *OPTIONS)
    for t in range(3):
        one = slice(t, t + 1)
        for by in (0, 1, 3):
            row = moved(logits[one], by)
            found = kernels.ops.logprob(row, target[one], *OPTIONS, True)
            for output, whole in zip(found, outputs, strict=True):
                assert not bitwise_problems(output, whole[one])
            again = kernels.ops.logprob_backward(
                *(g[one] for g in above), row, target[one], *found[:0:-1], *OPTIONS
            )
            assert not bitwise_problems(again, gradient[one])


@pytest.mark.parametrize("columns", [57, 64])
def test_in_place_the_gradient_is_the_same(kernels: Kernels, columns: int) -> None:
    logits, target = rows_of(columns, torch.bfloat16, kernels.device)
    above = upstream(kernels.device)
    saved = kernels.ops.logprob(logits, target, *OPTIONS, True)[:0:-1]
    expected = kernels.ops.logprob_backward(*above, logits, target, *saved, *OPTIONS)
    strided = logits.repeat_interleave(2, 1)[:, ::2]
    for place in (logits, moved(logits, 3), strided):
        kernels.ops.logprob_backward_(*above, place, target, *saved, *OPTIONS)
        assert not bitwise_problems(place.contiguous(), expected)


def test_rows_of_anything_have_zero_gradient_where_nothing_flows(kernels: Kernels) -> None:
    anything = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0]).repeat(2, 9)
    logits, target = anything.to(kernels.device), torch.tensor([0, 1], device=kernels.device)
    saved = kernels.ops.logprob(logits, target, *OPTIONS, True)[:0:-1]
    nothing = torch.zeros(2, device=kernels.device)
    gradient = kernels.ops.logprob_backward(nothing, nothing, logits, target, *saved, *OPTIONS)
    assert (gradient == 0).all()
