"""Rows of the files that benchmarks are published in: CSV, JSON, JSONL, Parquet, gzipped or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from r1train.config.schema import ConfigError
from r1train.data.fields import plain
from r1train.data.sources import open_rows
from r1train.data.sources.base import RowError

Row = dict[str, Any]


def read_text(path: Path) -> str:
    """A text file in UTF-8, gzipped or not."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig")
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
        yield from _json_rows(path, read_text(path))


def read_cells(path: Path) -> list[list[str]]:
    """The rows of a CSV file without names."""
    return [row for row in csv.reader(io.StringIO(read_text(path), newline="")) if row]


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    """One document that is a list, or an object on each line."""
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise ConfigError(f"{path}: neither JSON nor JSONL: {error}") from None
    for row in rows:
        if not isinstance(row, dict):
            raise ConfigError(f"{path}: a row is {str(row)[:60]!r}: expected an object")
        yield row


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
