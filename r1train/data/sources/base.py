"""What a kind of file offers: its rows, by number, read when they are asked for."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from r1train.config.schema import RunError

Row = dict[str, Any]
"""A JSON object, but for its numbers, which are `Number`."""


class RowError(ValueError):
    """What is wrong with a row."""


class Number(str):
    """A number as the file writes it, so that 1.50 stays 1.50."""

    @property
    def value(self) -> int | float:
        """What it is to Python."""
        try:
            return int(self)
        except ValueError:  # a fraction, or more digits than Python reads
            return float(self)


class Rows(ABC):
    """The rows of a file. None stays in memory that is not asked for."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Of the files that a folder is searched for."""
    unit: str = "row"
    """What a message calls one of them."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def reads(cls, path: str) -> bool:
        """Whether the file is of this kind."""
        return path.endswith(cls.suffixes)

    @abstractmethod
    def scan(self) -> Iterator[tuple[int, Row | RowError]]:
        """Every row with its number, from 0; one that cannot be read is what is wrong with it."""

    @abstractmethod
    def __getitem__(self, number: int) -> Row:
        """The row of that number, once they were all scanned."""

    def place(self, number: int) -> tuple[str, int]:
        """The file that a row is in, and its number there, from 1."""
        return self.path, number + 1

    def where(self, numbers: Sequence[int], most: int = 8) -> str:
        """What a message calls some rows: `a.jsonl, lines 1, 2, 3, …`, at most so many of them."""
        by_file: dict[str, list[str]] = {}
        for number in numbers[:most]:
            path, there = self.place(number)
            by_file.setdefault(path, []).append(str(there))
        text = "; ".join(
            f"{path}, {self.unit}{'s' * (len(found) > 1)} {', '.join(found)}"
            for path, found in by_file.items()
        )
        return text + ", …" * (len(numbers) > most)


class Unchanged:
    """Says where a file is no longer the one that was scanned."""

    def __init__(self, path: str) -> None:
        self.path, self.state = path, self._state(os.stat(path))

    def check(self, file: int | str) -> None:
        """Raises RunError if the file, by its descriptor or path, has been written to, or is
        another one."""
        if self._state(os.stat(file)) != self.state:
            raise RunError(
                f"{self.path}: the file was changed while it was in use, so its rows are not where "
                "they were: start again, and leave the file as it is"
            )

    @staticmethod
    def _state(found: os.stat_result) -> tuple[int, int, int, int]:
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def starts_with(path: str, *marks: bytes) -> bool:
    """Whether the file is there and begins with one of the marks."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return file.read(max(map(len, marks))).startswith(marks)
