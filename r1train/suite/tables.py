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
from r1train.report.statistics import Paired
from r1train.suite.results import Result

NONE = "–"
_LONGEST_NAME = 24
RATINGS = ("rating",)
"""Figures that are no shares."""
Results = Mapping[str, Result]


@dataclass(frozen=True)
class Table:
    """A table of texts; a row without cells heads those that follow."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: tuple[str, ...] = ()
    """First cells of the rows that are ours."""


def overview(results: Results) -> Table:
    """Every benchmark that was run."""
    rows = []
    for one in results.values():
        cons = NONE if one.cons is None else _percent(one.cons)
        counts = str(one.questions), str(one.k)
        mean = _percent(one.mean), _range(one.mean_ci)
        lengths = _percent(one.truncated), _percent(one.unanswered), f"{one.mean_tokens:,.0f}"
        rows.append((one.title, *counts, *mean, cons, *lengths))
    header = ("", "n", "k", "pass@1", "interval", "cons@k", "cut off", "no answer", "tokens")
    level = max(one.settings["confidence"] for one in results.values())
    title = f"Per cent, {level:.0%} intervals over questions; tokens of a completion"
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
    rows = tuple(
        (
            left[name].title,
            *(_percent(results[name].mean) for results in (left, right)),
            f"{100 * pair.difference:+.1f}",
            f"{100 * pair.low:+.1f} … {100 * pair.high:+.1f}",
            f"{pair.p_value:.3f}" if pair.p_value >= 0.001 else "< 0.001",
            str(pair.questions),
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
        clean = _percent(fmean(left)) if left else NONE
        rows.append((one.title, str(one.questions), str(len(seen)), _percent(one.mean), clean))
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
        found.add_row(*row, style=style)
    console.print(f"\n{table.title}", style="bold", markup=False)
    console.print(found)


def markdown(table: Table) -> str:
    """The table as Markdown, with its title."""
    width = len(table.header)
    lines = [f"**{table.title}**", "", _line(table.header), _line(["---", *["---:"] * (width - 1)])]
    for row in table.rows:
        cells = [f"**{row[0]}**"] if len(row) == 1 or row[0] in table.bold else [row[0]]
        lines.append(_line([*cells, *row[1:], *[""] * (width - len(row))]))
    return "\n".join(lines) + "\n"


def as_json(table: Table) -> dict[str, Any]:
    """The table as rows by the names of its columns."""
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows if len(row) > 1]
    return {"title": table.title, "rows": rows}


def _by_benchmark(data: dict[str, Any], results: Results, about: Mapping[str, str]) -> Table:
    """Table 4: a row for each benchmark; ours first, then the paper's models."""
    rows: list[tuple[str, ...]] = []
    for line in data["rows"]:
        if "texts" in line:
            rows.append((line["title"], about[line["title"]], NONE, *line["texts"]))
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
    bounds = [ends.split("–") if ends != NONE else [NONE, NONE] for _, ends in cells]
    rows = [
        (name, *(ours for ours, _ in cells)),
        ("  from", *(low for low, _ in bounds)),
        ("  to", *(high for _, high in bounds)),
        *((model, *map(_given, values)) for model, values in data["models"].items()),
    ]
    header = ("", *(column["title"] for column in data["columns"]))
    return Table(data["title"], header, tuple(rows), bold=(name,))


def _cell(results: Results, line: Mapping[str, Any]) -> tuple[str, str]:
    """Our figure, and its interval."""
    result = results.get(line.get("benchmark", ""))
    if result is None:
        return NONE, NONE
    figure = line.get("figure", "mean")
    if figure == "mean":
        return _percent(result.mean), _range(result.mean_ci)
    if figure == "cons":
        known = result.cons is not None and result.cons_ci is not None
        return (_percent(result.cons), _range(result.cons_ci)) if known else (NONE, NONE)  # type: ignore[arg-type]
    value = result.figures.get(figure)
    if value is None:
        return NONE, NONE
    ends = [result.figures.get(f"{figure}_{end}") for end in ("low", "high")]
    form = "{:.0f}" if figure in RATINGS else "{:.1f}"
    scale = 1 if figure in RATINGS else 100
    bounds = [form.format(scale * end) for end in ends if end is not None]
    return form.format(scale * value), "–".join(bounds) if len(bounds) == 2 else NONE


def _narrow(name: str) -> str:
    """The head of a column with a word on each line."""
    return name.replace(" ", "\n")


def _given(value: float) -> str:
    if isnan(value):
        return NONE
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _range(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
