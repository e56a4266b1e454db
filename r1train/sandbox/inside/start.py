"""A program as LiveCodeBench runs it: with its imports before it, and deep recursion.

Solutions write List[int] without importing it.
"""

import sys
import types

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
from sys import *
from json import *
from builtins import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random
import statistics, itertools, functools, operator, io, sys, json
"""


def run(name: str) -> types.ModuleType:
    """Executes /box/program.py as a module of that name."""
    sys.set_int_max_str_digits(0)  # the box has the limits
    sys.setrecursionlimit(50_000)
    module = sys.modules[name] = types.ModuleType(name)
    exec(USUAL, module.__dict__)
    with open("/box/program.py", encoding="utf-8") as file:
        source = file.read()
    exec(compile(source, "/box/program.py", "exec"), module.__dict__)
    return module


if __name__ == "__main__":
    run("__main__")
