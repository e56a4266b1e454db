"""filter_logits against the warpers of HuggingFace, in their order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from r1kernels import filter_logits

FILTERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "top-k": {"top_k": 7},
    "top-k beyond the vocabulary": {"top_k": 1000},
    "top-p": {"top_p": 0.8},
    "top-p that one token reaches": {"top_p": 1e-4},
    "min-p": {"min_p": 0.05},
    "all, tempered": {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    "all, hot": {"temperature": 1.7, "top_k": 50, "top_p": 0.95, "min_p": 0.1},
}


def logits() -> Tensor:
    return 3 * torch.randn(50, 90, generator=torch.Generator().manual_seed(0))


def warped(scores: Tensor, options: dict[str, Any]) -> Tensor:
    """What transformers leaves, divided by the temperature."""
    warpers = pytest.importorskip("transformers.generation.logits_process")
    ids = torch.zeros(len(scores), 1, dtype=torch.int64)
    makers = {
        "temperature": warpers.TemperatureLogitsWarper, "top_k": warpers.TopKLogitsWarper,
        "top_p": warpers.TopPLogitsWarper, "min_p": warpers.MinPLogitsWarper,
    }  # fmt: skip
    for name, make in makers.items():
        if name in options:
            scores = make(options[name])(ids, scores)
    return scores


@pytest.mark.parametrize("options", FILTERS.values(), ids=FILTERS)
def test_the_same_tokens_are_left_as_by_transformers(options: dict[str, Any]) -> None:
    given = logits()
    kept = filter_logits(given, **options)
    assert torch.equal(kept > -torch.inf, warped(given, options) > -torch.inf)
    assert torch.equal(kept.where(kept > -torch.inf, given), given)


def test_the_token_that_crosses_top_p_stays() -> None:
    given = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert (filter_logits(given, top_p=0.6) > -torch.inf).tolist() == [[True, True, False]]


def test_each_row_has_its_temperature() -> None:
    given, temperature = logits(), torch.linspace(0.3, 2.0, 50)
    kept = filter_logits(given, temperature=temperature, top_p=0.9)
    for row in range(50):
        alone = filter_logits(given[row : row + 1], temperature=float(temperature[row]), top_p=0.9)
        assert torch.equal(kept[row], alone[0])


@pytest.mark.parametrize("options", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("temperature", [1e-45, 1e-38])
def test_a_temperature_near_0_leaves_the_largest(
    options: dict[str, Any], temperature: float
) -> None:
    given = logits() - 100  # over this temperature they are all -inf
    kept = filter_logits(given, **options | {"temperature": temperature})
    assert torch.equal(kept.argmax(1), given.argmax(1))


@pytest.mark.parametrize("options", FILTERS.values(), ids=FILTERS)
def test_what_is_no_number_stays(options: dict[str, Any]) -> None:
    given = logits().bfloat16()
    given[3, 5] = torch.nan
    kept = filter_logits(given, **options)
    assert kept.dtype == torch.bfloat16
    assert kept.isnan().nonzero().tolist() == [[3, 5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k: expected a whole number, 1 or more, got 0"),
        ({"top_p": 0.0}, r"top_p: expected a number in \(0, 1\], got 0.0"),
        ({"min_p": 1.5}, r"min_p: expected a number in \[0, 1\], got 1.5"),
        ({"temperature": 0.0}, "temperature: expected a number above 0, got 0.0"),
    ],
)
def test_a_filter_that_means_nothing_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"filter_logits: {message}"):
        filter_logits(logits(), **options)
