"""Aligned Markdown tables: for the terminal and for the README, and no package is needed.

``make gpu`` runs with whatever Python a GPU machine has.
"""

from __future__ import annotations

from collections.abc import Sequence

TEXT_COLUMNS = 2  # the first ones, aligned to the left; numbers follow


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = [
        "-" * width if index < TEXT_COLUMNS else "-" * (width - 1) + ":"
        for index, width in enumerate(widths)
    ]
    return "\n".join(_line(cells, widths) for cells in (header, rule, *rows))


def milliseconds(seconds: float | None) -> str:
    return "wrong" if seconds is None else f"{seconds * 1e3:.4g} ms"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        f"{cell:<{width}}" if index < TEXT_COLUMNS else f"{cell:>{width}}"
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"
