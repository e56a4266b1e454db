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
from wire import line_of, packed, unpacked, without_limits  # type: ignore[import-not-found]

sys.path.remove("/box")

USUAL = """
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from json import *
from builtins import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random
import statistics, itertools, functools, operator, io, sys, json
"""
"""What LiveCodeBench imports before a program: solutions write List[int] without importing it."""


def main() -> None:
    calls = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    without_limits()
    module = types.ModuleType("program")
    sys.modules["program"] = module
    exec(USUAL, module.__dict__)
    with open("/box/program.py", encoding="utf-8") as file:
        source = file.read()
    with contextlib.suppress(SystemExit):
        exec(compile(source, "/box/program.py", "exec"), module.__dict__)
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
