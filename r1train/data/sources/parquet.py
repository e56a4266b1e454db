"""Parquet files. A row group is read when one of its rows is asked for, and kept for a while."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from r1train.config.schema import ConfigError
from r1train.data.sources.arrow import BLOCK, pyarrow, rows_of
from r1train.data.sources.base import Row, RowError, Rows, Unchanged, starts_with

KEPT_BYTES = 512 << 20
"""Of row groups that stay in memory, of all files together; the one in use may be larger."""
_KEPT: OrderedDict[tuple[object, int], Any] = OrderedDict()
"""By file and number; the last one was used last."""


class ParquetRows(Rows):
    """The rows of a Parquet file."""

    suffixes = (".parquet",)

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.unchanged = Unchanged(path)
        with self._open() as file:
            sizes = [
                file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)
            ]
        self.firsts = [0, *accumulate(sizes)]

    @classmethod
    def reads(cls, path: str) -> bool:
        return super().reads(path) or starts_with(path, b"PAR1")

    def scan(self) -> Iterator[tuple[int, Row | RowError]]:
        number = 0
        with self._open() as file:
            for batch in file.iter_batches(batch_size=BLOCK):
                for row in rows_of(batch):
                    yield number, row
                    number += 1

    def __getitem__(self, number: int) -> Row:
        group = bisect_right(self.firsts, number) - 1
        (row,) = rows_of(self._group(group).slice(number - self.firsts[group], 1))
        return row

    def _group(self, index: int) -> Any:
        key = self.unchanged.state, index
        if key not in _KEPT:
            with self._open() as file:
                _KEPT[key] = file.read_row_group(index)
            while len(_KEPT) > 1 and sum(group.nbytes for group in _KEPT.values()) > KEPT_BYTES:
                _KEPT.popitem(last=False)
        _KEPT.move_to_end(key)
        return _KEPT[key]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        pa, parquet = (pyarrow(name, self.path) for name in ("pyarrow", "pyarrow.parquet"))
        self.unchanged.check(self.path)
        try:
            with parquet.ParquetFile(self.path) as file:
                yield file
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(f"{self.path}: not a Parquet file, or damaged: {error}") from None
