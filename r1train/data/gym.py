"""reasoning-gym's datasets by name."""

from __future__ import annotations

from typing import Any

from r1train.config.schema import ConfigError, nearest


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
