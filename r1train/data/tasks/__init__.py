"""Tasks of our own beside reasoning-gym's datasets, by their names in `task.datasets`."""

from __future__ import annotations

from typing import Any

from r1train.config.schema import ConfigError
from r1train.data.tasks.base import Task
from r1train.data.tasks.bilingual_reply import BilingualReply
from r1train.data.tasks.bilingual_sum import BilingualSum

TASKS: dict[str, type[Task]] = {"bilingual_sum": BilingualSum, "bilingual_reply": BilingualReply}


def make(name: str, params: dict[str, Any]) -> Task:
    """The task of that name; raises ConfigError where it refuses `params`."""
    try:
        return TASKS[name](**params)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"task '{name}' refuses its params: {error}") from None
