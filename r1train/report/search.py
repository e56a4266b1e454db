"""What search found with the same number of tokens, as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from r1train.report.console import CONSOLE


def show_search(
    table: Mapping[str, Any], methods: Mapping[str, str], console: Console = CONSOLE
) -> None:
    """Accuracy with its interval and tokens of each method, by the name of its figures."""
    columns = [Column(name, justify="right") for name in ("accuracy", "tokens", "judged")]
    title = f"search: {table['problems']} problems"
    shown = Table("", *columns, title=title, caption="tokens of a problem: generated, judged")
    for name, words in methods.items():
        low, high = table[f"{name}_ci"]
        shown.add_row(
            words,
            f"{table[name]:.1%} ({low:.1%} – {high:.1%})",
            f"{table[f'{name}/tokens']:.1f}",
            f"{table[f'{name}/judged_tokens']:.1f}",
        )
    console.print(shown)
