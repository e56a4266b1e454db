"""Codeforces: a folder for each contest, with its problems and what its API says of the contest.

| file | holds |
|---|---|
| `problems.jsonl` | rows of huggingface.co/datasets/open-r1/codeforces, with `official_tests` |
| `standings.json` | `contest.standings` |
| `ratingChanges.json` | `contest.ratingChanges` |
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r1train.config.schema import ConfigError
from r1train.suite.formats.programs import checked
from r1train.suite.formats.rows import Row, read_rows, read_text, value
from r1train.suite.questions import Question
from r1train.suite.specs import Benchmark


def read(benchmark: Benchmark, paths: list[Path]) -> Iterator[Question]:
    """The problems of all contests; the reference has the tests and what the contest's other
    participants made of the problem."""
    for path in paths:
        field = _field(path.parent)
        for row in read_rows(path):
            index = str(value(row, "index", path))
            if index not in field["problems"]:
                raise ConfigError(f"{path}: problem {index!r} is not in the contest's standings")
            cases = value(row, "official_tests", path)
            tests = {name: [case[name[:-1]] for case in cases] for name in ("inputs", "outputs")}
            yield Question(
                id=f"{path.parent.name}/{index}",
                text=_statement(row),
                reference={
                    **checked(tests, path),
                    "time_limit": row.get("time_limit"),
                    "memory_limit": row.get("memory_limit"),
                    "contest": path.parent.name,
                    "worth": field["problems"][index],
                    "field": field["participants"],
                },
                slots={
                    "time_limit": f"{row.get('time_limit') or 2:g}",
                    "memory_limit": f"{row.get('memory_limit') or 256:g}",
                },
                subject=path.parent.name,
            )


def _field(folder: Path) -> dict[str, Any]:
    """Of a contest: rating and points of each rated participant, and what each problem was worth.

    A problem's points fall with the time until it is solved, and a model's time says nothing beside
    people's: so it is worth the median of what those earned who solved it.
    """
    standings = _api(folder / "standings.json")
    rows = [
        row
        for row in standings["rows"]
        if row["party"].get("participantType", "CONTESTANT") == "CONTESTANT"
    ]
    rated = {one["handle"]: one["oldRating"] for one in _api(folder / "ratingChanges.json")}
    participants = [
        [rated[member["handle"]], row["points"]]
        for row in rows
        for member in row["party"]["members"]
        if member["handle"] in rated
    ]
    if not participants:
        raise ConfigError(f"{folder}: nobody in standings.json has a rating in ratingChanges.json")
    problems = {}
    for number, problem in enumerate(standings["problems"]):
        earned = sorted(
            row["problemResults"][number]["points"]
            for row in rows
            if row["problemResults"][number]["points"] > 0
        )
        most = problem.get("points", 1.0)
        problems[problem["index"]] = earned[len(earned) // 2] if earned else most
    return {"participants": sorted(participants), "problems": problems}


def _api(path: Path) -> Any:
    """The result of a request to the API, with or without what is around it."""
    if not path.is_file():
        raise ConfigError(
            f"{path}: no such file: get it from codeforces.com/api/contest.{path.stem}"
        )
    try:
        found = json.loads(read_text(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    return found["result"] if isinstance(found, dict) and "result" in found else found


def _statement(row: Row) -> str:
    parts = [str(row.get("title") or ""), str(row.get("description") or "")]
    for name in ("input_format", "output_format", "note"):
        if row.get(name):
            parts.append(f"{name.replace('_', ' ').capitalize()}\n{row[name]}")
    for example in row.get("examples") or ():
        parts.append(f"Example input\n{example['input']}\nExample output\n{example['output']}")
    return "\n\n".join(part for part in parts if part)
