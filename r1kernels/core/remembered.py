"""Checks of sizes, dtypes, devices and options that are made once for arguments that are alike.

A model calls its layers with the same shapes again and again. A look at what was right before takes
a microsecond, and the check itself as long as a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

from r1kernels.core.plan import TENSORS
from r1kernels.core.reading import Reading, reading

Given = ParamSpec("Given")
Found = TypeVar("Found")

# Options whose values are compared as they are; their types are, too, since 1 == 1.0 == True.
OPTIONS = (int, float, bool, str, type(None), torch.dtype)
MOST = 4096  # arguments of a function that are remembered: lengths of batches are ever new

_NOTHING = object()


def remembered(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Decorator of a check that changes nothing; what it returns is nobody's to change either.

    Given tensors and plain options alone, what it returned is returned at once where options,
    shapes, dtypes, devices and layouts are the same: values of tensors must be looked at elsewhere,
    too. What it raises is never remembered.
    """
    passed: dict[Any, Any] = {}

    @wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return function(*args, **kwargs)
        given = (*args, *kwargs, *kwargs.values())
        types = tuple(map(type, given))
        facts = _facts(types)
        if facts is None:
            return function(*args, **kwargs)
        key = types, facts(given)
        try:
            found = passed.get(key, _NOTHING)
        except TypeError:  # symbolic sizes cannot be looked up
            return function(*args, **kwargs)
        if found is _NOTHING:
            found = function(*args, **kwargs)
            if len(passed) >= MOST:
                passed.clear()
            passed[key] = found
        return found

    return run


@lru_cache(maxsize=MOST)
def _facts(types: tuple[type, ...]) -> Reading | None:
    """All that counts of arguments of these types; None where some are neither of those."""
    if not all(kind in TENSORS or kind in OPTIONS for kind in types):
        return None
    return reading(
        f"args[{index}]{what}"
        for index, kind in enumerate(types)
        for what in ((".shape", ".dtype", ".device", ".layout") if kind in TENSORS else ("",))
    )
