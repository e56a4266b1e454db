"""The mark of a reward function that runs in the trainer's own process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def in_process(function: Function) -> Function:
    """Decorator of a reward function that is to be called in the trainer, without a time limit.

    For what cannot be had in another process: a reward model on the trainer's GPU, or state that
    the function shares with other code. Setting `function.in_process = True` does the same.
    """
    function.in_process = True  # type: ignore[attr-defined]
    return function
