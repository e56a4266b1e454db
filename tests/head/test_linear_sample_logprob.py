"""linear_sample_logprob against sample_logprob of logits that no product rounds: whole numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import r1kernels
from r1kernels import sample_logprob
from r1kernels.__main__ import unavailable
from r1kernels.head.linear_sample_logprob import LINEAR_SAMPLE_LOGPROB, linear_sample_logprob
from r1kernels.head.sample_logprob import BLOCK
from r1kernels.testing.compare import bitwise_problems
from tests import instruction_sets

BELOW_ONE = 1 - 2.0**-53
ISAS = instruction_sets.here() if unavailable(LINEAR_SAMPLE_LOGPROB, "cpp") is None else []
every_variant = pytest.mark.parametrize("isa", ["torch", *ISAS])


@contextmanager
def active(isa: str) -> Iterator[None]:
    """Pins the reference, or the C++ kernel of an instruction set."""
    if isa == "torch":
        with r1kernels.using("torch", LINEAR_SAMPLE_LOGPROB):
            yield
        return
    torch.ops.r1_cpp.limit_isa(isa)
    try:
        with r1kernels.using("cpp", LINEAR_SAMPLE_LOGPROB):
            yield
    finally:
        torch.ops.r1_cpp.limit_isa("")


def whole(rows: int, columns: int, width: int = 10) -> tuple[Tensor, Tensor]:
    """Hidden states and a weight of small whole numbers, whose products bfloat16 holds."""
    rng = torch.Generator().manual_seed(rows + columns)
    hidden = torch.randint(-2, 3, (rows, width), generator=rng)
    weight = torch.randint(-2, 3, (columns, width), generator=rng)
    return hidden.float(), weight.float()


def uniforms(rows: int) -> Tensor:
    return torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [1, 63, 64, BLOCK + 1, 3 * BLOCK + 100])
def test_the_token_is_that_of_the_logits(isa: str, dtype: torch.dtype, columns: int) -> None:
    hidden, weight = whole(130, columns)
    uniform, temperature = uniforms(130), torch.tensor([1.0, 0.0, 0.6, 1e-40, 2.0]).repeat(26)
    expected = sample_logprob(hidden @ weight.T, uniform, temperature=temperature)
    with active(isa):
        found = linear_sample_logprob(
            hidden.to(dtype), weight.to(dtype), uniform, temperature=temperature
        )
    assert torch.equal(found.token, expected.token)
    torch.testing.assert_close(found.logprob, expected.logprob, rtol=1e-6, atol=1e-6)


@every_variant
def test_what_the_model_does_to_its_logits(isa: str) -> None:
    hidden, weight = whole(20, 2 * BLOCK)
    bias = torch.arange(2 * BLOCK) % 3 - 1.0
    options: dict[str, Any] = {"bias": bias, "logit_scale": 0.25, "softcap": 5.0}
    logits = torch.tanh((hidden @ weight.T + bias) * 0.25 / 5) * 5
    with active(isa):
        token, logprob = linear_sample_logprob(hidden, weight, uniforms(20), **options)
    exact = logits.double().log_softmax(-1).gather(1, token[:, None])[:, 0]
    torch.testing.assert_close(logprob.double(), exact, rtol=1e-5, atol=1e-5)


@every_variant
def test_a_row_without_a_distribution_is_nan_and_no_other(isa: str) -> None:
    hidden, weight = whole(5, BLOCK + 70)
    hidden[1, 3] = torch.nan
    hidden[3, 0] = torch.inf
    weight[:, 0] = 1.0
    uniform = torch.tensor([0.0, 0.5, BELOW_ONE, 0.5, 0.5], dtype=torch.float64)
    with active(isa):
        for temperature in (1.0, 0.0):
            token, logprob = linear_sample_logprob(hidden, weight, uniform, temperature=temperature)
            assert logprob.isnan().tolist() == [False, True, False, True, False]
            assert token[[1, 3]].tolist() == [0, 0]


@every_variant
def test_what_a_bias_removes_is_never_drawn(isa: str) -> None:
    hidden, weight = whole(3, 2 * BLOCK)
    bias = torch.full((2 * BLOCK,), -torch.inf)
    bias[[17, BLOCK + 3]] = 0
    uniform = torch.tensor([0.0, 0.5, BELOW_ONE], dtype=torch.float64)
    with active(isa):
        token, _ = linear_sample_logprob(hidden, weight, uniform, bias=bias)
    assert set(token.tolist()) <= {17, BLOCK + 3}


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_their_own(isa: str, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(3)
    hidden = torch.randn(70, 200, generator=rng).to(dtype)
    weight = torch.randn(2100, 200, generator=rng).to(dtype)
    uniform = uniforms(70)
    with active(isa):
        together = linear_sample_logprob(hidden, weight, uniform)
        parts = [
            linear_sample_logprob(hidden[at], weight, uniform[at])
            for at in (slice(0, 1), slice(1, 20), slice(20, 70))
        ]
    if isa == "torch":
        return  # its product may round a row otherwise in other company
    for index, found in enumerate(together):
        assert not bitwise_problems(torch.cat([part[index] for part in parts]), found)


def wrong(**changed: Any) -> dict[str, Any]:
    right = {
        "hidden": torch.zeros(2, 3),
        "weight": torch.zeros(5, 3),
        "uniform": torch.zeros(2, dtype=torch.float64),
    }
    return right | changed


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (wrong(weight=torch.zeros(5, 4)), ValueError, r"weight: expected H = 3 in shape \[V, H\]"),
        (wrong(weight=torch.zeros(5, 3).bfloat16()), TypeError, "weight: expected dtype float32"),
        (wrong(weight=torch.zeros(0, 3)), ValueError, "expected V ≥ 1 tokens to choose from"),
        (wrong(uniform=torch.ones(2).double()), ValueError, r"uniform\[0\]: expected 0 ≤ uniform"),
        (wrong(temperature=-1.0), ValueError, "temperature: expected a number from 0 on, got -1.0"),
        (wrong(softcap=0.0), ValueError, "softcap: expected a number above 0, got 0.0"),
    ],
)
def test_a_wrong_argument_is_an_error(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"linear_sample_logprob: {message}"):
        linear_sample_logprob(**arguments)
