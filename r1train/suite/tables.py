"""Results as the paper lays them out, its columns beside ours: a terminal of 80 columns, Markdown.

The paper's figures are data (`paper/table-4.toml` and so on).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable

from r1train.report.console import CONSOLE
from r1train.report.evaluation import Interval
from r1train.report.statistics import Paired
from r1train.suite.results import Result

NONE = "–"
_LONGEST_NAME = 24
RATINGS = ("rating",)
"""Figures that are no shares."""
Results = Mapping[str, Result]


@dataclass(frozen=True)
class Figure:
    """A number, or the two ends of an interval, and how they are shown."""

    value: float | Interval
    form: str = ".1f"
    joint: str = "–"

    def __str__(self) -> str:
        return self.joint.join(format(end, self.form) for end in self.ends)

    @property
    def ends(self) -> tuple[float, ...]:
        return self.value if isinstance(self.value, tuple) else (self.value,)


Cell = str | Figure | None
"""A text, a number, or nothing that is known."""


@dataclass(frozen=True)
class Table:
    """Rows by their first cells, which are texts; one without other cells heads those that
    follow."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    bold: tuple[str, ...] = ()
    """First cells of the rows that are ours."""


def overview(results: Results, model: Path) -> Table:
    """Every benchmark that the model in that folder was asked."""
    rows = []
    for one in results.values():
        cons = None if one.cons is None else _percent(one.cons)
        counts = Figure(one.questions, "d"), Figure(one.k, "d")
        mean = _percent(one.mean), _range(one.mean_ci)
        shares = _percent(one.truncated), _percent(one.unanswered)
        others = Figure(one.unjudged, "d"), Figure(one.mean_tokens, ",.0f")
        rows.append((one.title, *counts, *mean, cons, *shares, *others))
    figures = "n", "k", "pass@1", "interval", "cons@k"
    header = ("", *figures, "cut off", "no answer", "no verdict", "tokens")
    level = max(one.settings["confidence"] for one in results.values())
    title = (
        f"{model}: per cent, {level:.0%} intervals over questions; completions without a verdict; "
        "tokens of a completion"
    )
    return Table(title, header, tuple(rows))


def paper_tables(results: Results, name: str, about: Mapping[str, str]) -> list[Table]:
    """Those of the paper's tables that have one of the results. `name` is our model's, `about` what
    the first rows of table 4 say of it."""
    folder = Path(str(files("r1train"))) / "suite" / "paper"
    found = []
    for path in sorted(folder.glob("*.toml")):
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        lines = data["rows"] if "rows" in data else data["columns"]
        if any(line.get("benchmark") in results for line in lines):
            made = _by_benchmark(data, results, about) if "rows" in data else None
            found.append(made or _by_model(data, results, name))
    return found


def comparison(
    pairs: Mapping[str, Paired], left: Results, right: Results, names: tuple[str, str]
) -> Table:
    """The paired tests of two models."""
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            left[name].title,
            *(_percent(results[name].mean) for results in (left, right)),
            Figure(100 * pair.difference, "+.1f"),
            _signed_range(pair),
            Figure(pair.p_value, ".2g"),
            Figure(pair.questions, "d"),
        )
        for name, pair in pairs.items()
    )
    header = ("pass@1", names[0], names[1], "difference", "interval", "p", "n")
    return Table("Paired over questions", header, rows)


def contamination_table(results: Results, found: Mapping[str, set[str]]) -> Table:
    """Questions that the training data has, by their ids, and pass@1 without them."""
    rows = []
    for name, seen in found.items():
        one = results[name]
        left = [value for question, value in one.per_question.items() if question not in seen]
        clean = _percent(fmean(left)) if left else None
        counts = Figure(one.questions, "d"), Figure(len(seen), "d")
        rows.append((one.title, *counts, _percent(one.mean), clean))
    header = ("", "n", "in training data", "pass@1", "without them")
    return Table("Ten words in a row in the training data", header, tuple(rows))


def show(table: Table, console: Console = CONSOLE) -> None:
    """The table on the terminal."""
    first, *others = table.header
    found = RichTable(
        Column(first, no_wrap=True),
        *(Column(_narrow(name), justify="right", no_wrap=True) for name in others),
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="bold underline",
    )
    for row in table.rows:
        style = "bold" if len(row) == 1 or row[0] in table.bold else ""
        found.add_row(*map(_text, row), style=style)
    console.print(f"\n{table.title}", style="bold", markup=False)
    console.print(found)


def markdown(table: Table) -> str:
    """The table as Markdown, with its title."""
    width = len(table.header)
    lines = [f"**{table.title}**", "", _line(table.header), _line(["---", *["---:"] * (width - 1)])]
    for row in table.rows:
        name, *cells = map(_text, row)
        name = f"**{name}**" if not cells or name in table.bold else name
        lines.append(_line([name, *cells, *[""] * (width - len(row))]))
    return "\n".join(lines) + "\n"


def as_json(table: Table) -> dict[str, Any]:
    """The table as rows by the names of its columns: numbers as they are, an interval as its two
    ends, null where nothing is known."""
    rows = [
        {
            name: cell.value if isinstance(cell, Figure) else cell
            for name, cell in zip(table.header, row, strict=True)
        }
        for row in table.rows
        if len(row) > 1
    ]
    return {"title": table.title, "rows": rows}


def _by_benchmark(data: dict[str, Any], results: Results, about: Mapping[str, str]) -> Table:
    """Table 4: a row for each benchmark; ours first, then the paper's models."""
    rows: list[tuple[Cell, ...]] = []
    for line in data["rows"]:
        if "texts" in line:
            rows.append((line["title"], about[line["title"]], None, *map(_given, line["texts"])))
            continue
        if "group" in line:
            rows.append((line["group"],))
        ours, bounds = _cell(results, line)
        rows.append((line["title"], ours, bounds, *map(_given, line["values"])))
    return Table(data["title"], ("", "ours", "interval", *data["columns"]), tuple(rows))


def _by_model(data: dict[str, Any], results: Results, name: str) -> Table:
    """Tables 5 and 6: a row for each model, ours first, with its intervals below it."""
    cells = [_cell(results, column) for column in data["columns"]]
    name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    rows: list[tuple[Cell, ...]] = [
        (name, *(ours for ours, _ in cells)),
        *(
            (side, *(both and Figure(both.ends[i], both.form) for _, both in cells))
            for i, side in enumerate(("  from", "  to"))
        ),
        *((model, *map(_given, values)) for model, values in data["models"].items()),
    ]
    header = ("", *(column["title"] for column in data["columns"]))
    return Table(data["title"], header, tuple(rows), bold=(name,))


def _cell(results: Results, line: Mapping[str, Any]) -> tuple[Figure | None, Figure | None]:
    """Our figure, and its interval; none where the paper's is of another k, as cons@64."""
    result = results.get(line.get("benchmark", ""))
    if result is None:
        return None, None
    figure = line.get("figure", "mean")
    if figure == "mean":
        return _percent(result.mean), _range(result.mean_ci)
    if figure == "cons":
        if result.k != line["k"] or result.cons is None or result.cons_ci is None:
            return None, None
        return _percent(result.cons), _range(result.cons_ci)
    value = result.figures.get(figure)
    if value is None:
        return None, None
    scale, form = (1, ".0f") if figure in RATINGS else (100, ".1f")
    low, high = (result.figures.get(f"{figure}_{end}") for end in ("low", "high"))
    ours = Figure(scale * value, form)
    if low is None or high is None:
        return ours, None
    return ours, Figure((scale * low, scale * high), form)


def _narrow(name: str) -> str:
    """The head of a column with a word on each line."""
    return name.replace(" ", "\n")


def _text(cell: Cell) -> str:
    return NONE if cell is None else str(cell)


def _given(value: str | float) -> Cell:
    """What the paper says."""
    if isinstance(value, str):
        return None if value == NONE else value
    return None if isnan(value) else Figure(value, "d" if isinstance(value, int) else ".1f")


def _percent(share: float) -> Figure:
    return Figure(100 * share)


def _range(ends: Interval) -> Figure:
    return Figure((100 * ends[0], 100 * ends[1]))


def _signed_range(pair: Paired) -> Figure | None:
    """None where all differences are alike: resampling shows no spread of them."""
    if pair.low == pair.high:
        return None
    return Figure((100 * pair.low, 100 * pair.high), "+.1f", " … ")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
