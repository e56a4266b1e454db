"""A JSONL file that grows by batches of rows, and can be gone on with after a crash."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class RowFile:
    """Batches of `size` rows each, of which the last may be smaller."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size

    def whole_batches(self) -> int:
        """How many batches are whole; what a crash has torn behind them is cut off."""
        if not self.path.exists():
            return 0
        ends = [0]
        with open(self.path, "r+b") as file:
            for line in file:
                try:
                    json.loads(line)
                except ValueError:  # a power cut leaves zeros
                    break
                if not line.endswith(b"\n"):
                    break
                ends.append(ends[-1] + len(line))
            batches = (len(ends) - 1) // self.size
            file.truncate(ends[batches * self.size])
        return batches

    def append(self, rows: Sequence[Row]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(map(line_of, rows)))

    def __iter__(self) -> Iterator[Row]:
        with open(self.path, encoding="utf-8", newline="\n") as file:
            yield from map(json.loads, file)


def line_of(row: Row) -> str:
    """A row as a line of JSONL."""
    return json.dumps(row, ensure_ascii=False) + "\n"
