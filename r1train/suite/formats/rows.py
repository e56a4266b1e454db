"""Rows of the files that benchmarks are published in: CSV, JSON, JSONL, Parquet, gzipped or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from r1train.config.schema import ConfigError
from r1train.data.fields import plain
from r1train.data.sources import open_rows
from r1train.data.sources.base import RowError

Row = dict[str, Any]


def read_text(path: Path) -> str:
    """A text file in UTF-8, gzipped or not."""
    with _opened(path) as file:
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """What is wrong with the file is a ConfigError, also while it is read."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(
            path, "rt", encoding="utf-8-sig", newline=""
        ) as file:
            yield file
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file as plain data. CSV has its names in the first line."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind in (".parquet", ".arrow"):
        for _, row in open_rows(str(path)).scan():
            if isinstance(row, RowError):
                raise ConfigError(f"{path}: {row}")
            yield plain(row)
    elif kind in (".csv", ".tsv"):
        csv.field_size_limit(1 << 24)
        delimiter = "\t" if kind == ".tsv" else ","
        yield from csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    else:
        yield from _json_rows(path)


def read_cells(path: Path) -> list[list[str]]:
    """The rows of a CSV file without names."""
    return [row for row in csv.reader(io.StringIO(read_text(path), newline="")) if row]


def _json_rows(path: Path) -> Iterator[Row]:
    """One document that is a list, or an object on each line; lines are read one at a time, since
    those of LiveCodeBench are gigabytes."""
    with _opened(path) as file:
        lines = (line for line in file if line.strip())
        first = next(lines, "")
        try:
            if first.lstrip().startswith("["):
                rows: Iterable[Any] = json.loads(first + file.read())
            else:
                rows = map(json.loads, chain([first] if first else [], lines))
            for row in rows:
                if not isinstance(row, dict):
                    raise ConfigError(f"{path}: a row is {str(row)[:60]!r}: expected an object")
                yield row
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}: neither JSON nor JSONL: {error}") from None


def value(row: Row, names: str | Sequence[str], path: Path) -> Any:
    """What the row has under the first of these names that it has."""
    names = [names] if isinstance(names, str) else names
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise ConfigError(
        f"{path}: a row has none of {', '.join(names)}; its keys are {', '.join(map(str, row))}"
    )


def written(value: Any) -> str:
    """A value as text: 142.0 is 142, as the benchmarks mean it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
