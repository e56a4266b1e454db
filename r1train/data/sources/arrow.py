"""Arrow files, those of a `datasets` folder among them: mapped into memory, not read into it."""

from __future__ import annotations

import datetime
import decimal
import importlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from r1train.config.schema import ConfigError
from r1train.data.sources.base import Number, Row, RowError, Rows, Unchanged, starts_with

BLOCK = 256  # rows that are converted at once while a file is scanned


def pyarrow(module: str, path: str) -> Any:
    """A module of pyarrow; ConfigError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f'{path}: reading it needs pyarrow, of the extra "data": pip install "r1kernels[data]" '
            '(in a checkout: pip install ".[data]")'
        ) from None


class ArrowRows(Rows):
    """The rows of an Arrow file, of IPC's stream or file format."""

    suffixes = (".arrow",)

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.unchanged = Unchanged(path)

    @classmethod
    def reads(cls, path: str) -> bool:
        return super().reads(path) or starts_with(path, b"ARROW1")

    def scan(self) -> Iterator[tuple[int, Row | RowError]]:
        for first in range(0, self.table.num_rows, BLOCK):
            yield from enumerate(self._rows(first, BLOCK), start=first)

    def __getitem__(self, number: int) -> Row:
        (row,) = self._rows(number, 1)
        return row

    def _rows(self, first: int, count: int) -> list[Row]:
        self.unchanged.check(self.path)  # to read past the end of a file that is mapped is fatal
        return rows_of(self.table.slice(first, count))

    @cached_property
    def table(self) -> Any:
        pa = pyarrow("pyarrow", self.path)
        self.unchanged.check(self.path)
        file = pa.memory_map(self.path)
        try:
            if starts_with(self.path, b"ARROW1"):
                return pa.ipc.open_file(file).read_all()
            return pa.ipc.open_stream(file).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(f"{self.path}: not an Arrow file, or damaged: {error}") from None


def rows_of(table: Any) -> list[Row]:
    """The rows of a pyarrow table, its numbers with the digits that they were written with."""
    columns = [
        [_plain(value, column.type) for value in column.to_pylist()] for column in table.columns
    ]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(value: Any, kind: Any) -> Any:
    """A value of that Arrow type as JSON has it."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return Number(value)
    if isinstance(value, float):
        return Number(_shortest(value, kind.bit_width))
    if isinstance(value, decimal.Decimal):
        return Number(format(value, "f"))
    if isinstance(value, dict):
        return {name: _plain(inner, kind.field(name).type) for name, inner in value.items()}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_plain(inner, kind.value_type) for inner in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value


def _shortest(value: float, bits: int) -> str:
    """The fewest digits that a float of so many bits is read back from: 0.1, not 0.10000000149."""
    if bits == 64 or value != value:
        return repr(value)
    import numpy as np

    return repr(float(str({16: np.float16, 32: np.float32}[bits](value))))
