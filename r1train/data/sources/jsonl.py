"""JSONL: one JSON object a line, in UTF-8.

Only a line feed ends a line (a carriage return before it is dropped): U+2028 and its like are
characters of a string. Of a line that was read, where it begins stays in memory: eight bytes.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path

from r1train.config.schema import ConfigError
from r1train.data.sources.base import Number, Row, RowError, Rows, Unchanged

MAX_LINE_BYTES = 16 << 20


class JsonlRows(Rows):
    """The lines of a file; those that are blank are no rows, but are counted."""

    suffixes = (".jsonl", ".ndjson")
    unit = "line"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.unchanged = Unchanged(path)
        self.starts = array("q", [0])  # of every line, and where the last one ends

    @classmethod
    def reads(cls, path: str) -> bool:
        """Any file: what is none of JSONL is found where it is read."""
        return True

    def scan(self) -> Iterator[tuple[int, Row | RowError]]:
        del self.starts[1:]
        with open(self.path, "rb") as file:
            self.unchanged.check(file.fileno())
            while line := file.readline(MAX_LINE_BYTES + 1):
                number, length = len(self.starts) - 1, len(line)
                if number == 0:
                    _check_start(self.path, line)
                rest = line
                while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE_BYTES + 1)
                    length += len(rest)
                self.starts.append(self.starts[-1] + length)
                if length > MAX_LINE_BYTES:
                    limit = f"longer than {MAX_LINE_BYTES >> 20} MiB"
                    yield number, RowError(f"{limit}; is each row on its line?")
                elif line.strip():
                    try:
                        yield number, self._parse(line, number)
                    except RowError as error:
                        yield number, error

    def __getitem__(self, number: int) -> Row:
        start, end = self.starts[number], self.starts[number + 1]
        with open(self.path, "rb") as file:
            self.unchanged.check(file.fileno())
            file.seek(start)
            return self._parse(file.read(end - start), number)

    def _parse(self, line: bytes, number: int) -> Row:
        try:
            text = line.decode("utf-8-sig" if number == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise RowError(
                f"byte {self.starts[number] + error.start} of the file "
                f"(0x{line[error.start]:02x}) is not UTF-8; convert the file, for example with: "
                f"iconv -f LATIN1 -t UTF-8 {Path(self.path).name} > utf8.jsonl"
            ) from None
        try:
            value = json.loads(text, parse_float=Number, parse_int=Number, parse_constant=Number)
        except json.JSONDecodeError as error:
            listed = text.lstrip().startswith("[")
            if listed or text.strip() == "{":
                raise RowError(
                    "expected one JSON object a line, not one document over several; rewrite the "
                    f"file, for example with: jq -c '{'.[]' if listed else '.'}'"
                ) from None
            raise RowError(f"not JSON: {error.msg} at column {error.colno}") from None
        except RecursionError:
            raise RowError("its JSON is nested too deeply") from None
        if not isinstance(value, dict):
            raise RowError('expected an object such as {"prompt": "What is 1 + 1?", "answer": "2"}')
        return value


def _check_start(path: str, line: bytes) -> None:
    """Refuses the files of another kind that are met most often."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:4]:
        name = Path(path).name
        remedy = f"convert it, for example with: iconv -f UTF-16 -t UTF-8 {name} > utf8.jsonl"
        raise ConfigError(f"{path}: byte 0 of the file is not UTF-8 but UTF-16: {remedy}")
    if line.startswith(b"\x1f\x8b"):
        raise ConfigError(f"{path}: the file is compressed: unpack it first, with gunzip")
