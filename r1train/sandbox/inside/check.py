"""In a box of its own: a test whose candidate is a function in the box of the program.

Ends with status 0 where `check(candidate)` returns. The program is asked by lines on standard
output, and answers on standard input (`call.py`); it sees arguments, never the test.
"""

import builtins
import json
import os
import sys
from typing import Any

sys.path.insert(0, "/box")
from wire import line_of, packed, unpacked  # type: ignore[import-not-found]

ENTRY_POINT = sys.argv[1]
REPLIES = os.fdopen(os.dup(0), "r", encoding="utf-8")
CALLS = os.fdopen(os.dup(1), "w", encoding="utf-8")


# Where the test iterates, the first two would end the iteration as if all were well.
NOT_RAISED = (StopIteration, StopAsyncIteration, AssertionError)


class Raised(Exception):
    """What the function raised, where that is no built-in exception."""


def candidate(*arguments: Any, **keywords: Any) -> Any:
    call = {"function": ENTRY_POINT, "arguments": packed(list(arguments))}
    CALLS.write(line_of(call | {"keywords": packed(keywords)}))
    CALLS.flush()
    reply = json.loads(REPLIES.readline() or '{"error": ["EOFError", "the program has ended"]}')
    if "error" in reply:
        name, text = reply["error"]
        raise exception(str(name))(f"{name}: {text}")
    return unpacked(reply["value"])


def exception(name: str) -> type[Exception]:
    kind = getattr(builtins, name, None)
    if not isinstance(kind, type) or not issubclass(kind, Exception) or kind in NOT_RAISED:
        return Raised
    return kind


def main() -> None:
    os.dup2(2, 1)  # what a test prints is no call
    sys.set_int_max_str_digits(0)
    names: dict[str, Any] = {"__name__": "test"}
    for part in ("setup", "test"):
        with open(f"/box/{part}.py", encoding="utf-8") as file:
            exec(compile(file.read(), f"/box/{part}.py", "exec"), names)
    names[ENTRY_POINT] = candidate
    names["check"](candidate)


main()
