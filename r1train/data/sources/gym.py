"""reasoning-gym's datasets by name: problems that are made when they are asked for."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from r1train.config.schema import ConfigError, nearest

BLOCK = 500  # problems of one seed: some datasets lay out all that they have at once


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


def generate(name: str, params: dict[str, Any], seed: str) -> Iterator[dict[str, Any]]:
    """Entries without end: each has a question, an answer and metadata, and may have come before.

    Raises ConfigError where the dataset fails.
    """
    for block in itertools.count():
        block_seed = random.Random(f"{seed}/{block}").getrandbits(32)
        items = create(name, {**params, "size": BLOCK, "seed": block_seed})
        for i in range(BLOCK):
            try:
                entry = items[i]
            except Exception as error:  # of any of a hundred generators
                raise ConfigError(
                    f"reasoning-gym dataset '{name}' cannot make problems of its params: "
                    f"{type(error).__name__}: {error}"
                ) from error
            yield entry
