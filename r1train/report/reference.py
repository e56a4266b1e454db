"""What the source of a recipe reports, beside what a run has reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from r1train.report.console import CONSOLE


def show_reference(reference: Mapping[str, Any], console: Console = CONSOLE) -> None:
    """The figures to reach, as summary.json has them; nothing where there are none."""
    if not reference.get("figures"):
        return
    table = Table("to reach", Column(justify="right"), title=f"reported: {reference['source']}")
    for name, value in reference["figures"].items():
        table.add_row(name, f"{value:g}")
    console.print(table)
