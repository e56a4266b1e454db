"""The arguments of an op by the names that they have in its schema."""

from __future__ import annotations

from collections import namedtuple
from typing import Any


def fields_of(overload: Any) -> Any:
    """A class of named tuples with a field for each argument."""
    names = [argument.name for argument in overload._schema.arguments]
    name: str = overload._schema.name.rpartition("::")[2]
    made: Any = namedtuple(name, names)  # type: ignore[misc]
    return made
