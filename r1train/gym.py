"""reasoning-gym: its datasets by name, and the verifiers that they bring."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from r1train.schema import ConfigError, nearest


@lru_cache
def scorer(name: str, params: str) -> Any:
    return create(name, json.loads(params))


def create(name: str, params: dict[str, Any]) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise ConfigError(f"unknown reasoning-gym dataset '{name}': {nearest(name, DATASETS)}")
    try:
        return reasoning_gym.create_dataset(name, **params)
    except (TypeError, AssertionError, ValueError) as error:
        raise ConfigError(f"reasoning-gym dataset '{name}' refuses its params: {error}") from None
