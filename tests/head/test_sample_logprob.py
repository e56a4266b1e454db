"""sample_logprob: the same token everywhere, and tokens as often as their probabilities say.

What a backend draws is known by the uniform numbers at which its token changes. They are found to
the last bit by halving, which leaves the probability of each token to be compared with softmax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels import Sampled, sample_logprob, triton
from r1kernels.__main__ import unavailable
from r1kernels.head.sample_logprob import BLOCK, SAMPLE_LOGPROB
from r1kernels.testing.compare import bitwise_problems
from tests import instruction_sets

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UNITS = 2**53
BELOW_ONE = 1 - 1 / UNITS
TEMPERATURE = 0.8


def variants() -> list[tuple[str, str]]:
    """Backends and, for C++, instruction sets."""
    found = [("torch", "")]
    if unavailable(SAMPLE_LOGPROB, "cpp") is None:
        found += [("cpp", isa) for isa in instruction_sets.here()]
    if DEVICE == "cuda" or triton.INTERPRETED:
        found.append(("triton", ""))
    return found


@contextmanager
def active(backend: str, isa: str) -> Iterator[str]:
    """Pins the backend; gives the device that it runs on."""
    if isa:
        torch.ops.r1_cpp.limit_isa(isa)
    try:
        with r1kernels.using(backend, SAMPLE_LOGPROB):
            yield DEVICE if backend == "triton" else "cpu"
    finally:
        if isa:
            torch.ops.r1_cpp.limit_isa("")


every_variant = pytest.mark.parametrize(
    ("backend", "isa"), variants(), ids=lambda value: value or "best"
)


def spread(tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
    """[1, V] logits, all −inf but some that lie in all blocks, in any order."""
    rng = torch.Generator().manual_seed(tokens)
    logits = torch.full((1, columns), -torch.inf)
    where = torch.linspace(0, columns - 1, tokens).long()
    logits[0, where] = 20 + 4 * torch.randn(tokens, generator=rng)
    return logits.to(dtype)


def boundaries(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The tokens that may come, and for each the first number after it, in units of 2⁻⁵³."""
    kept = (logits[0] > -torch.inf).nonzero()[:, 0]
    rows = logits.expand(len(kept), -1)
    low = torch.zeros(len(kept), dtype=torch.int64)
    high = torch.full_like(low, UNITS)
    while (low < high).any():
        middle = (low + high) // 2
        uniform = middle.clamp(max=UNITS - 1).double() / UNITS
        after = sample_logprob(rows, uniform, temperature=temperature).token > kept
        low, high = low.where(after, middle + 1), high.where(~after, middle)
        low = low.minimum(high)
    return kept, low


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.9])
def test_probabilities_are_those_of_softmax(temperature: float, dtype: torch.dtype) -> None:
    logits = spread(60, 3 * BLOCK + 100, dtype)
    kept, ends = boundaries(logits, temperature)
    got = ends.diff(prepend=torch.zeros_like(ends[:1])).double() / UNITS
    expected = (logits.double() / temperature).softmax(-1)[0, kept]
    for least, error in ((1e-3, 1e-6), (1e-6, 2e-6)):  # what float32 leaves of the exponents
        probable = expected > least * expected.max()
        assert probable.sum() > 5
        assert (got / expected - 1)[probable].abs().max() < error
    assert (got - expected).abs().max() < 1e-6


@cache
def around_boundaries(dtype: torch.dtype) -> tuple[Tensor, Tensor, Sampled]:
    """Logits, the numbers on both sides of every boundary, and what the reference draws there."""
    logits = spread(40, BLOCK + 57, dtype)
    with r1kernels.using("torch", SAMPLE_LOGPROB):
        kept, ends = boundaries(logits, TEMPERATURE)
        uniform = torch.cat([ends - 1, ends]).clamp(max=UNITS - 1).double() / UNITS
        rows = logits.expand(len(uniform), -1)
        drawn = sample_logprob(rows, uniform, temperature=TEMPERATURE)
    assert len(drawn.token.unique()) > len(kept) // 2
    return rows, uniform, drawn


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_changes_at_the_same_number_everywhere(
    backend: str, isa: str, dtype: torch.dtype
) -> None:
    """To the last bit of 2⁻⁵³: one weight that were rounded otherwise would move the boundaries."""
    rows, uniform, expected = around_boundaries(dtype)
    with active(backend, isa) as device:
        drawn = sample_logprob(rows.to(device), uniform.to(device), temperature=TEMPERATURE)
    assert torch.equal(drawn.token.cpu(), expected.token)
    torch.testing.assert_close(drawn.logprob.cpu(), expected.logprob, rtol=1e-6, atol=1e-6)


def test_draws_are_as_frequent_as_their_probabilities() -> None:
    rows, columns = 4000, 37
    rng = torch.Generator().manual_seed(5)
    logits = torch.randn(1, columns, generator=rng)
    uniform = torch.rand(rows, generator=rng, dtype=torch.float64)
    token, _ = sample_logprob(logits.expand(rows, -1), uniform)
    counts = token.bincount(minlength=columns).double()
    expected = rows * logits.double().softmax(-1)[0]
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 68  # of 36 degrees of freedom: one in a thousand is larger


@every_variant
def test_temperature_0_takes_the_first_of_the_largest(backend: str, isa: str) -> None:
    logits = torch.randn(6, 3000, generator=torch.Generator().manual_seed(1)).bfloat16()
    for row, places in enumerate(([0], [2999, 5], [1024, 1023], [2500, 2048], [7, 6], [2047])):
        logits[row, places] = 9.0
    uniform = torch.full((6,), BELOW_ONE, dtype=torch.float64)
    temperature = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    with active(backend, isa) as device:
        token, logprob = sample_logprob(
            logits.to(device), uniform.to(device), temperature=temperature.to(device)
        )
    assert token[:5].tolist() == [0, 5, 1023, 2048, 6]
    assert token[5] == 2999
    exact = logits.double().log_softmax(-1).gather(1, token.cpu()[:, None])[:, 0]
    torch.testing.assert_close(logprob.cpu().double(), exact, rtol=1e-6, atol=1e-6)


@every_variant
@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-38, 1e-30])
def test_a_temperature_near_0_takes_the_largest(backend: str, isa: str, temperature: float) -> None:
    """Where the logits over it are infinite, and where it is subnormal itself."""
    logits = 9 * torch.randn(4, 3000, generator=torch.Generator().manual_seed(6))
    logits[1, :2000] = -torch.inf
    logits[2] *= 1e-3
    logits[3, [7, 2500]] = 99.0
    uniform = torch.full((4,), BELOW_ONE, dtype=torch.float64)
    with active(backend, isa) as device:
        token, logprob = sample_logprob(
            logits.to(device), uniform.to(device), temperature=temperature
        )
    assert token.tolist() == [*logits[:3].argmax(1).tolist(), 2500]  # of equal ones by the number
    expected = torch.tensor([0.0, 0.0, 0.0, math.log(0.5)])
    torch.testing.assert_close(logprob.cpu(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of Triton's interpreter
@every_variant
def test_a_row_without_a_distribution_is_nan_and_no_other(backend: str, isa: str) -> None:
    logits = torch.randn(10, 2 * BLOCK + 9, generator=torch.Generator().manual_seed(2))
    logits[1] = -torch.inf
    logits[2, 3] = torch.nan
    logits[3, BLOCK:] = torch.nan
    logits[4, -1] = torch.nan
    logits[5, BLOCK + 7] = torch.inf
    logits[6] = torch.nan
    logits[7, 5] = -torch.inf
    logits[8, :BLOCK] = -torch.inf
    uniform = torch.linspace(0, BELOW_ONE, 10, dtype=torch.float64)
    with active(backend, isa) as device:
        for temperature in (1.0, 0.0):
            token, logprob = sample_logprob(
                logits.to(device), uniform.to(device), temperature=temperature
            )
            assert logprob.isnan().tolist() == [False] + 6 * [True] + 3 * [False]
            assert token[1:7].tolist() == 6 * [0]
            assert token[8] >= BLOCK


@every_variant
def test_what_is_removed_is_never_drawn(backend: str, isa: str) -> None:
    logits = torch.full((3, 2 * BLOCK), -torch.inf)
    logits[:, [17, BLOCK + 3]] = torch.tensor([1.0, 2.0])
    uniform = torch.tensor([0.0, 0.3, BELOW_ONE], dtype=torch.float64)
    with active(backend, isa) as device:
        token, logprob = sample_logprob(logits.to(device), uniform.to(device))
    assert token.tolist() == [17, BLOCK + 3, BLOCK + 3]
    expected = torch.tensor([1.0, 2.0, 2.0]) - torch.tensor([1.0, 2.0]).logsumexp(0)
    torch.testing.assert_close(logprob.cpu(), expected, rtol=1e-6, atol=1e-6)


@every_variant
def test_rows_lie_anywhere_and_are_their_own(backend: str, isa: str) -> None:
    wide = torch.randn(9, 2 * BLOCK, generator=torch.Generator().manual_seed(3)).bfloat16()
    part, uniform = wide[:, 3:1500], torch.rand(9, dtype=torch.float64)
    with active(backend, isa) as device:
        together = sample_logprob(part.to(device), uniform.to(device))
        strided = sample_logprob(wide.to(device)[:, 3:1500], uniform.to(device))
        alone = [
            sample_logprob(part[row : row + 1].to(device), uniform[row : row + 1].to(device))
            for row in range(9)
        ]
    for index, got in enumerate(together):
        assert not bitwise_problems(strided[index], got)
        assert not bitwise_problems(torch.cat([one[index] for one in alone]), got)


def test_one_row_of_a_large_vocabulary_is_the_same_on_any_number_of_threads() -> None:
    logits = 3 * torch.randn(1, 151_936, generator=torch.Generator().manual_seed(4)).bfloat16()
    uniform = torch.tensor([0.37], dtype=torch.float64)
    with r1kernels.using("torch", SAMPLE_LOGPROB):
        expected = sample_logprob(logits, uniform)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        token, logprob = sample_logprob(logits, uniform)
        assert torch.equal(token, expected.token)
        torch.testing.assert_close(logprob, expected.logprob, rtol=1e-6, atol=1e-6)


def test_it_has_no_gradient() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    token, logprob = sample_logprob(logits, torch.rand(2, dtype=torch.float64))
    assert not token.requires_grad
    with pytest.raises(NotImplementedError, match="sample_logprob: it has no gradient"):
        logprob.sum().backward()


def wrong(**changed: Any) -> dict[str, Any]:
    right = {"logits": torch.zeros(2, 5), "uniform": torch.zeros(2, dtype=torch.float64)}
    return right | changed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            wrong(uniform=torch.tensor([0.5, 1.0]).double()),
            r"uniform\[1\]: expected 0 ≤ uniform < 1, got 1.0",
        ),
        (
            wrong(uniform=torch.tensor([torch.nan, 0.0]).double()),
            r"uniform\[0\]: expected 0 ≤ uniform < 1, got nan",
        ),
        (wrong(temperature=-1.0), "temperature: expected a number from 0 on, got -1.0"),
        (
            wrong(temperature=torch.tensor([1.0, -2.0])),
            r"temperature\[1\]: expected 0 ≤ temperature < inf, got -2.0",
        ),
        (wrong(logits=torch.zeros(2, 0)), "expected V ≥ 1 tokens to choose from, got 0"),
    ],
)
def test_a_wrong_value_is_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"sample_logprob: {message}"):
        sample_logprob(**arguments)
