"""Where rows of data come from: a file, a folder of files, or a pattern of names.

A kind of file is one module here and one entry of `KINDS`; everything after it is shared.
reasoning-gym's problems have no rows: they are made when they are asked for (`gym`).
"""

from __future__ import annotations

from r1train.config.schema import ConfigError
from r1train.data.sources.arrow import ArrowRows
from r1train.data.sources.base import Rows
from r1train.data.sources.jsonl import JsonlRows
from r1train.data.sources.parquet import ParquetRows
from r1train.data.sources.shards import Shards, files_of

KINDS: list[type[Rows]] = [ParquetRows, ArrowRows, JsonlRows]
"""The first that `reads` a file is used; JSONL reads what no other does."""


def open_rows(path: str, setting: str = "path") -> Rows:
    """The rows of `path`: a file, a folder of them, a `datasets` folder, or a pattern with *.

    Raises ConfigError where there is none, which says by what `setting` it is named, or it holds
    several kinds of files.
    """
    suffixes = tuple(suffix for kind in KINDS for suffix in kind.suffixes)
    files = files_of(path, suffixes, setting)
    kinds = [next(kind for kind in KINDS if kind.reads(file)) for file in files]
    examples = dict(zip(kinds, files, strict=True))
    if len(examples) > 1:
        named = ", ".join(examples.values())
        raise ConfigError(
            f"{path}: names files of {len(examples)} kinds, such as {named}: give a pattern that "
            "only files of one kind match"
        )
    shards = [kind(file) for kind, file in zip(kinds, files, strict=True)]
    return shards[0] if len(shards) == 1 else Shards(shards)
