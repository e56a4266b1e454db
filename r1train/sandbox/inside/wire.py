"""Values on their way between boxes, as lines of JSON: plain data of exact types, and nothing else.

What comes from a program that a model wrote has no methods of its own: an object that is equal to
everything does not survive the journey.
"""

import json
from typing import Any


def packed(value: Any) -> Any:
    """A value as JSON has it: lists, and other containers as an object with one key."""
    if value is None or isinstance(value, bool | str | int | float):
        for plain in (bool, int, float, str):
            if isinstance(value, plain):  # a subclass arrives as what it is one of
                return plain(value)
        return value
    if isinstance(value, list):
        return [packed(item) for item in value]
    for name, kind in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, kind):
            return {name: [packed(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[packed(key), packed(item)] for key, item in value.items()]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": list(value)}
    raise TypeError(f"a {type(value).__name__} is no plain data, which is all that a test can see")


def unpacked(value: Any) -> Any:
    """The value that was packed. Raises ValueError or TypeError for what never was."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((name, items),) = value.items()
    if not isinstance(items, list):
        raise ValueError(f"expected a list of what the {name} holds")
    if name == "dict":
        return {unpacked(key): unpacked(item) for key, item in items}
    if name == "complex":
        return complex(*items)
    kinds = {"tuple": tuple, "set": set, "frozenset": frozenset, "bytes": bytes}
    if name not in kinds:
        raise ValueError(f"unknown kind of value {name!r}")
    return kinds[name](unpacked(items))


def line_of(message: dict[str, Any]) -> str:
    """A message as a line."""
    return json.dumps(message) + "\n"
