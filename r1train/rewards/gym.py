"""What an answer to a problem of reasoning-gym scores."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

from r1train.data.sources.gym import create
from r1train.rewards.gym_checks import CHECKS, SHAPES


def score(name: str, params: dict[str, Any], answer: str, entry: dict[str, Any]) -> float:
    """What the dataset's verifier gives the answer, or our own check where it is stricter.

    `entry` has the question, the answer and the metadata of the problem. Raises ValueError where
    the score is not a number.
    """
    name = entry["metadata"].get("source_dataset", name)  # a composite's part
    if name in CHECKS:
        return float(CHECKS[name](answer, entry))
    if name in SHAPES and not SHAPES[name](answer, entry):
        return 0.0
    value = float(scorer(name, params).score_answer(answer, entry))
    if not math.isfinite(value):
        raise ValueError(f"the verifier of {name} gave {answer!r} the score {value}")
    return value


def scorer(name: str, params: dict[str, Any]) -> Any:
    """The dataset that scores answers, made once."""
    return _scorer(name, json.dumps(params, sort_keys=True))


@lru_cache
def _scorer(name: str, params: str) -> Any:
    return create(name, json.loads(params))
