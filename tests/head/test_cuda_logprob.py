"""The forward kernels of logprob on sm_90: a row is the same from each of them, in any batch."""

from __future__ import annotations

import pytest
import torch

from r1kernels.core.op import OPS
from r1kernels.testing.compare import bitwise_problems
from tests.emulated_cuda import Kernels

# (columns, dtype): one slice in whole chunks; two slices of rows that each begin elsewhere between
# 16 bytes; eight slices; one and eight in float32.
ROWS = [(16384, torch.bfloat16), (30011, torch.bfloat16), (151936, torch.bfloat16),
        (8192, torch.float32), (60001, torch.float32)]  # fmt: skip
OPTIONS = {
    "plain": (None, 1.0, None),
    "a temperature a row": ((0.7, 1.3), 2.0, None),
    "a negative scale": (None, -0.5, None),
    "all": ((0.7, 1.3), 1.5, 3.0),
}
MANY = 9  # more than two a multiprocessor of the emulator; 2 · 132 of an H100


@pytest.mark.parametrize("entropy", [False, True], ids=["logprob", "entropy"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("columns", "dtype"), ROWS, ids=str)
def test_a_row_does_not_depend_on_its_batch(
    kernels: Kernels, columns: int, dtype: torch.dtype, options: tuple, entropy: bool
) -> None:
    rows = MANY if kernels.device == "cpu" else 2 * 132 + 9
    if columns > 100_000 and kernels.device == "cpu":
        rows = 6
    rng = torch.Generator().manual_seed(columns)
    logits = (4 * torch.randn(rows, columns, generator=rng)).to(kernels.device, dtype)
    bounds, *rest = options
    logits[1, ::3] = -torch.inf if rest[0] > 0 else torch.inf
    target = torch.randint(columns, (rows,), generator=rng).to(kernels.device)
    target[1] = 1
    temperature = None
    if bounds is not None:
        temperature = torch.linspace(*bounds, rows, device=kernels.device)
    together = kernels.ops.logprob(logits, target, temperature, *rest, entropy)
    exact = OPS["logprob"].implementations["torch"].run(
        logits.double(), target, None if temperature is None else temperature.double(), *rest,
        entropy,
    )  # fmt: skip
    for output, truth in zip(together, exact, strict=True):
        torch.testing.assert_close(output.double(), truth, rtol=2e-6, atol=2e-6)
    for t in (0, 1, 4, rows - 1):
        one = slice(t, t + 1)
        mine = None if temperature is None else temperature[one]
        alone = kernels.ops.logprob(logits[one], target[one], mine, *rest, entropy)
        for output, whole in zip(alone, together, strict=True):
            assert not bitwise_problems(output, whole[one] if len(whole) else whole)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_a_row_with_no_number_in_it_costs_no_other(kernels: Kernels, bad: float) -> None:
    rows = MANY if kernels.device == "cpu" else 2 * 132 + 9
    logits = torch.randn(rows, 20001, device=kernels.device)
    logits[3, 7777] = bad
    logits[4] = -torch.inf
    target = torch.zeros(rows, dtype=torch.long, device=kernels.device)
    for entropy in (False, True):
        for output in kernels.ops.logprob(logits, target, None, 1.0, None, entropy)[: 1 + entropy]:
            assert output.isnan().nonzero().flatten().tolist() == [3, 4]
