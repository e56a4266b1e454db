"""In the box of a program: calls its functions as lines on standard input ask for it.

A line {"function", "arguments", "keywords"} is answered by {"value"} or {"error": [type, text]}.
What the program itself reads is empty, and what it prints is not seen.
"""

import contextlib
import json
import os
import sys
import types
from typing import Any

sys.path.insert(0, "/box")
from start import run  # type: ignore[import-not-found]
from wire import line_of, packed, unpacked  # type: ignore[import-not-found]

sys.path.remove("/box")


def main() -> None:
    calls = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    with contextlib.suppress(SystemExit):
        run("program")
    module = sys.modules["program"]
    for line in calls:
        replies.write(line_of(answer(module, json.loads(line))))
        replies.flush()


def answer(module: types.ModuleType, call: dict[str, Any]) -> dict[str, Any]:
    try:
        function = find(module, call["function"])
        arguments, keywords = unpacked(call["arguments"]), unpacked(call["keywords"])
        return {"value": packed(function(*arguments, **keywords))}
    except Exception as error:
        return {"error": [type(error).__name__, str(error)[:500]]}


def find(module: types.ModuleType, name: str) -> Any:
    """A method of the class `Solution`, if it has one, else a function."""
    solution = getattr(module, "Solution", None)
    if isinstance(solution, type) and hasattr(solution, name):
        return getattr(solution(), name)
    return getattr(module, name)


main()
