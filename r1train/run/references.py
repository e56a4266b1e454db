"""Options that say "stage:NAME": they mean the file or folder that an earlier stage has left."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from r1train.config.schema import Section
from r1train.config.stages import MARK


def references(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Keys among the options below `key` that name a stage, and its name."""
    if isinstance(value, str):
        if value.startswith(MARK):
            yield key, value.removeprefix(MARK)
    else:
        for name, inner in _parts(value):
            yield from references(inner, f"{key}.{name}")


def resolved(value: Any, path: Callable[[str], str]) -> Any:
    """The options with a path, by the name of the stage, in the place of each reference."""
    if isinstance(value, str):
        return path(value.removeprefix(MARK)) if value.startswith(MARK) else value
    if isinstance(value, tuple):
        items = tuple(resolved(inner, path) for inner in value)
        return value if all(map(operator.is_, items, value)) else items
    if isinstance(value, Section):
        found = {f.name: resolved(getattr(value, f.name), path) for f in fields(value)}  # type: ignore[arg-type]
        changed = {name: new for name, new in found.items() if new is not getattr(value, name)}
        return replace(value, **changed) if changed else value  # type: ignore[type-var]
    if isinstance(value, Mapping):
        return {name: resolved(inner, path) for name, inner in value.items()}
    return value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Section):
        yield from ((f.name, getattr(value, f.name)) for f in fields(value))  # type: ignore[arg-type]
    elif isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple | list):
        yield from ((str(number), inner) for number, inner in enumerate(value))
