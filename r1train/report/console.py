"""What a run shows on the terminal: a progress bar, completions now and then, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import isnan
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from r1train.report.evaluation import EvalResult
from r1train.report.findings import Finding, difference

CONSOLE = Console(highlight=False)
PROMPT_CHARACTERS, COMPLETION_CHARACTERS = 200, 400


class ProgressBar:
    """A bar with a few figures behind it; where there is no terminal, about twenty lines."""

    def __init__(
        self, title: str, total: int, console: Console = CONSOLE, *, done: int = 0
    ) -> None:
        self.title, self.total, self.console, self.done = title, total, console, done
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", style="cyan"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(title, total=total, completed=done, figures="")

    def __enter__(self) -> ProgressBar:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def advance(self, figures: Mapping[str, float]) -> None:
        """One step is done; `figures` are shown beside the bar."""
        self.done += 1
        text = " · ".join(f"{name} {unless_nan(v, '{:.3g}')}" for name, v in figures.items())
        self.progress.update(self.task, advance=1, figures=text)
        if not self.console.is_terminal and self.done % max(1, self.total // 20) == 0:
            self.console.print(f"{self.title} {self.done}/{self.total} · {text}")


def show_completions(
    step: int,
    prompts: Sequence[str],
    completions: Sequence[str],
    rewards: Mapping[str, Sequence[float | None]],
    console: Console = CONSOLE,
) -> None:
    """A table for each run of equal prompts: its completions and their rewards, by name.

    A reward that does not apply is a dash.
    """
    for prompt, rows in groupby(range(len(prompts)), key=lambda row: prompts[row]):
        title = Text(f"step {step} · {_printable(prompt, PROMPT_CHARACTERS)}", style="bold")
        table = Table(title=title, title_justify="left", expand=True)
        table.add_column("completion", ratio=1, overflow="fold")
        for name in rewards:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            values = [rewards[name][row] for name in rewards]
            table.add_row(
                Text(_printable(completions[row], COMPLETION_CHARACTERS)),
                *map(_reward, values),
                end_section=True,
            )
        console.print(table)


def show_evaluation(result: EvalResult, console: Console = CONSOLE) -> None:
    """The figures of one evaluation, with their intervals."""
    table = Table("", Column(justify="right"), show_header=False, title=_title(result))
    for name, _, text in _figures(result):
        table.add_row(name, text)
    console.print(table)
    if result.errors or result.timeouts:
        console.print(f"verifier: {result.errors} errors, {result.timeouts} time-outs")


def show_before_after(
    before: EvalResult, after: EvalResult, plots: Sequence[Path], console: Console = CONSOLE
) -> None:
    """Held-out figures before and after training, their change, and where the plots are."""
    columns = [Column(name, justify="right") for name in ("before", "after", "change")]
    table = Table("", *columns, title=_title(after))
    for (name, was, first), (_, now, last) in zip(_figures(before), _figures(after), strict=True):
        bold = "bold" if name == "pass@1" else ""
        table.add_row(name, first, last, unless_nan(now - was, "{:+.3g}"), style=bold)
    console.print(table)
    for path in plots:
        console.print(path, soft_wrap=True)


def show_findings(findings: Sequence[Finding], console: Console = CONSOLE) -> None:
    """What was expected of a recipe, and what its seeds show of it."""
    colors = {"reproduced": "green", "not reproduced": "red", "not decided": "yellow"}
    table = Table(title="findings over the seeds", title_justify="left")
    for name in ("finding", "difference (95 %)", ""):
        table.add_column(name, overflow="fold")
    for one in findings:
        paper = Text(f"\npaper: {one.paper}", style="dim") if one.paper else Text()
        verdict = Text(one.verdict, style=colors[one.verdict])
        table.add_row(Text(one.title) + paper, difference(one), verdict, end_section=True)
    console.print(table)


def show_counts(title: str, counts: Mapping[str, Any], console: Console = CONSOLE) -> None:
    """Figures of a stage by name, one a line, but those of single problems."""
    table = Table("", Column(justify="right"), show_header=False, title=title)
    for name, value in counts.items():
        if not isinstance(value, Mapping):
            whole = isinstance(value, int)
            table.add_row(name, f"{value:,}" if whole else unless_nan(value, "{:.3g}"))
    console.print(table)


def _reward(value: float | None) -> Text:
    if value is None:
        return Text("–")
    return Text(f"{value:.3g}", style="green" if value > 0 else "red")


def _title(result: EvalResult) -> str:
    some = result.verifiable < result.n
    verifiable = f" ({result.verifiable} of them verifiable)" if some else ""
    return f"held-out: {result.n} problems{verifiable} × {result.k} completions"


def _figures(result: EvalResult) -> list[tuple[str, float, str]]:
    """Name, value (shares in per cent) and text of every figure of an evaluation; a dash is what
    applies to nothing."""
    shares = {
        "pass@1": (result.pass_at_1, result.pass_at_1_ci),
        f"cons@{result.k}": (result.cons_at_k, result.cons_at_k_ci),
        "format": (result.format_rate, None),
        "truncated": (result.truncated, None),
    }
    figures = []
    for name, (share, interval) in shares.items():
        bounds = f" ({interval[0]:.1%} – {interval[1]:.1%})" if interval else ""
        figures.append((name, 100 * share, unless_nan(share, "{:.1%}" + bounds)))
    length = result.mean_length
    figures.append(("mean length", length, f"{length:.1f} tokens"))
    rewards = result.rewards.items()
    return figures + [(name, mean, unless_nan(mean, "{:.3g}")) for name, mean in rewards]


def unless_nan(value: float, form: str) -> str:
    """The value in this form, or a dash."""
    return "–" if isnan(value) else form.format(value)


def _printable(text: str, limit: int) -> str:
    """`text` without control characters, shortened in the middle to `limit` characters."""
    text = "".join(c if c.isprintable() or c == "\n" else "�" for c in text.strip())
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]} … {text[-half:]}"
