"""reasoning-gym: its datasets by name, and what an answer to one scores."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

from r1train.gym_checks import CHECKS, SHAPES
from r1train.schema import ConfigError, nearest


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


def create(name: str, params: dict[str, Any]) -> Any:
    """The dataset of that name; raises ConfigError where there is none or it refuses `params`."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise ConfigError(f"unknown reasoning-gym dataset '{name}': {nearest(name, DATASETS)}")
    try:
        return reasoning_gym.create_dataset(name, **params)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"reasoning-gym dataset '{name}' refuses its params: {error}") from None
