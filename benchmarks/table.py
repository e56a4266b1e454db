"""Aligned Markdown tables of 80 columns: for the terminal and for the README, without a package.

``make gpu`` runs with whatever Python a GPU machine has.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence

from benchmarks.record import Row

WIDTH = 80
HEADER = ("run by", "time", "TFLOP/s", "GB/s", "%peak", "÷best", "MiB", "error")


def cells(row: Row) -> list[str]:
    """What one implementation did, under ``HEADER``."""
    return [
        row.implementation,
        milliseconds(row.seconds),
        significant(row.tflops if (row.tflops or 0) > 0.01 else None),
        significant(row.gbps),
        number(row.roofline, ".0%"),
        number(row.ratio, ".2f"),
        number(row.peak and row.peak / 2**20, ".1f" if (row.peak or 0) < 100 << 20 else ".0f"),
        f"{row.error:.0e}",
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, aligned to the left; numbers follow."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(cells, widths) for cells in (header, rule, *rows))


def show(
    title: str,
    rows: Sequence[Row],
    problems: Iterable[str],
    header: Sequence[str] = HEADER,
    cells: Callable[[Row], Sequence[str]] = cells,
) -> None:
    """Print one table, and why some of its rows have no speed."""
    print(f"\n{textwrap.fill(title, WIDTH)}\n{table(header, [cells(row) for row in rows])}")
    for problem in problems:
        print(textwrap.fill(textwrap.shorten(problem, 4 * WIDTH), WIDTH), flush=True)


def milliseconds(seconds: float | None) -> str:
    return "wrong" if seconds is None else f"{significant(seconds * 1e3, 4)} ms"


def significant(value: float | None, digits: int = 3) -> str:
    """Without an exponent: 0.123, 12.3, 1234."""
    return number(value, f".{digits}g" if (value or 0) < 10**digits else ".0f")


def number(value: float | None, form: str) -> str:
    """Nothing for what is unknown or does not apply."""
    return f"{value:{form}}" if value else ""


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    padded = [f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in rest)]
    return f"| {' | '.join(padded)} |"
