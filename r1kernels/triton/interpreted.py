"""Repairs of Triton's interpreter, for tests; imported where ``TRITON_INTERPRET`` is set.

It rounds float32 to bfloat16 towards zero, unlike every GPU. And it is slow: it replaces the whole
language again at every call of a function within a kernel, and does each integer sum three times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_convert = interpreter._convert_float
_call_grid = interpreter.GridExecutor.__call__
_patch = interpreter._patch_lang
_patched: set[bool] = set()


def _convert_float(values: np.ndarray, source: Any, result: Any, rounding: Any) -> np.ndarray:
    if (source, result) != (tl.float32, tl.bfloat16):
        return _convert(values, source, result, rounding)
    single = torch.from_numpy(np.ascontiguousarray(values).view(np.float32).copy())
    return single.to(torch.bfloat16).view(torch.uint16).numpy()


def _patch_lang(function: Callable[..., Any]) -> Any:
    """Once for kernels, which see triton.language, and once for its own library, which does not."""
    sees_language = tl in function.__globals__.values()
    if sees_language in _patched:
        return None
    _patched.add(sees_language)
    return _patch(function)


def _launch(*args: Any, **kwargs: Any) -> None:
    _patched.clear()
    with np.errstate(all="ignore"):  # infinities and NaN are what the tests are about
        _call_grid(*args, **kwargs)


interpreter.interpreter_builder.options = replace(
    interpreter.interpreter_builder.options, sanitize_overflow=False
)
interpreter._convert_float = _convert_float
interpreter._patch_lang = _patch_lang
interpreter.GridExecutor.__call__ = _launch
