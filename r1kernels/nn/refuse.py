"""Arguments that another library takes and this one cannot honour."""

from __future__ import annotations

from typing import Any


def refuse(name: str, **arguments: tuple[Any, ...]) -> None:
    """Each argument comes as (value, accepted, …): a value that is not accepted is an error.

    Raises:
        NotImplementedError: naming the argument, what is accepted and what came.
    """
    for argument, (value, *accepted) in arguments.items():
        if not any(value is known or _equal(value, known) for known in accepted):
            expected = " or ".join(map(repr, accepted))
            got = f"a {type(value).__name__}" if hasattr(value, "shape") else repr(value)
            raise NotImplementedError(
                f"{name}: {argument}: expected {expected}, the only thing supported; got {got}"
            )


def _equal(value: Any, known: Any) -> bool:
    return isinstance(value, int | float | str) and value == known
