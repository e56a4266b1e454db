"""The algebra of ``r1kernels/policy/surrogates.py``, compiled for the GPU from its own source."""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

import triton
import triton.language as tl

from r1kernels.policy import surrogates
from r1kernels.triton import elementary

_WORDS = ("exp", "log", "maximum", "minimum", "sigmoid", "where")


def _rebound() -> dict[str, Any]:
    """Every function of the module by name, its imported names bound to Triton's."""
    names: dict[str, Any] = {"tl": tl, "__name__": __name__}
    names |= {word: getattr(elementary, word) for word in _WORDS}
    for name, function in inspect.getmembers(surrogates, inspect.isfunction):
        names[name] = triton.jit(FunctionType(function.__code__, names, name))
    return names


FUNCTIONS = _rebound()
