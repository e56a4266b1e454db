"""Problems that programs solve: LiveCodeBench and HumanEval. Their tests are read by
`r1train.sandbox.cases`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from r1train.config.schema import ConfigError
from r1train.sandbox.cases import read_tests
from r1train.suite.formats.rows import Row, read_rows, value
from r1train.suite.questions import Question
from r1train.suite.specs import Benchmark

_LIVECODEBENCH = ("public_test_cases", "private_test_cases", "metadata")
_HUMANEVAL = ("prompt", "test", "entry_point")
_STREAMS = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly "
    "test on the sample inputs). Enclose your code within delimiters as follows. Ensure that when "
    "the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT."
)
_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your "
    "code within delimiters."
)


def read_livecodebench(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """Rows of its test*.jsonl. `fields` may have "since" and "until": days of contests between
    which a problem counts, since models have seen older ones."""
    since, until = (benchmark.fields.get(name, "") for name in ("since", "until"))
    for path in paths:
        for row in read_rows(path):
            day = str(row.get("contest_date", ""))[:10]
            if (since and day < since) or (until and day > until):
                continue
            starter = str(row.get("starter_code") or "")
            yield Question(
                id=str(value(row, "question_id", path)),
                text=str(value(row, "question_content", path)),
                reference=checked({name: row.get(name) for name in _LIVECODEBENCH}, path),
                slots={
                    "format": _STARTER if starter else _STREAMS,
                    "starter": starter.rstrip() or "# YOUR CODE HERE",
                },
                subject=str(row.get("difficulty", "")),
            )


def read_humaneval(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """Rows of HumanEval.jsonl."""
    for path in paths:
        for row in read_rows(path):
            yield Question(
                id=str(value(row, "task_id", path)),
                text=str(value(row, "prompt", path)),
                reference=checked({name: value(row, name, path) for name in _HUMANEVAL}, path),
            )


def checked(tests: Row, path: Path) -> Row:
    """The tests of a row, if they can be used."""
    try:
        if not read_tests(tests):
            raise ValueError("a problem has no test case")
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    return tests
