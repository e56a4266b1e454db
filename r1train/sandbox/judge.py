"""What a program is worth: it is run against test cases, each in a box of its own.

No verdict is ever taken from inside: a box has the input of one test and gives what the program
wrote; what is expected stays outside, and the comparison too.
"""

from __future__ import annotations

from collections.abc import Sequence

from r1train.sandbox.cases import Case
from r1train.sandbox.limits import Language, Limits, Result


def run_tests(
    program: str,
    language: Language,
    tests: Sequence[Case],
    limits: Limits | None = None,
    *,
    all_tests: bool = False,
) -> list[Result]:
    """One result for each test, in their order.

    What follows the first test that is not passed is "not run"; with `all_tests` all are run, until
    four ran out of time. C++ is compiled once, with limits of its own; where that fails, every
    result is "not compiled". Raises SandboxError where the machine failed, not the program.
    """
    raise NotImplementedError
