"""A path as the files that it names, and several files read as one."""

from __future__ import annotations

import glob
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

from r1train.config.schema import ConfigError
from r1train.data.sources.base import Row, RowError, Rows


def files_of(path: str, suffixes: tuple[str, ...], setting: str) -> list[str]:
    """The files of a path, in order: itself, what matches its *, or those of a folder.

    A folder is one that `datasets` saved (`Dataset.save_to_disk`), or has files of one kind, whose
    names end in one of `suffixes`; those in folders inside it are not looked for.
    """
    folder = Path(path)
    if folder.is_file():
        return [path]
    if not folder.exists():
        found = sorted(file for file in glob.glob(path) if Path(file).is_file())
        if not found:
            place = "" if folder.is_absolute() else f" (in {Path.cwd()})"
            raise ConfigError(
                f"{setting} = {path!r}: no such file or folder{place}: put the data there "
                "(docs/data.md says in which form), or set it to where they are"
            )
        return found
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(inner.name for inner in folder.iterdir() if inner.is_dir()))
        raise ConfigError(f"{path}: a folder of several splits: name one of {splits} in it")
    if (folder / "state.json").is_file():
        return _saved_by_datasets(folder)
    found = sorted(str(file) for file in folder.iterdir() if file.name.endswith(suffixes))
    kinds = {Path(file).suffix for file in found}
    if len(kinds) != 1:
        holds = f"holds files of {len(kinds)} kinds" if kinds else "holds no data"
        raise ConfigError(
            f"{path}: the folder {holds} ({', '.join(sorted(kinds) or suffixes)}): name a file, or "
            f"a pattern such as {folder / '*.parquet'}"
        )
    return found


def _saved_by_datasets(folder: Path) -> list[str]:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return [str(folder / file["filename"]) for file in state["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{folder / 'state.json'}: does not name the folder's files as `datasets` writes them"
        ) from None


class Shards(Rows):
    """Files of rows one after the other. Rows are numbered through all of them."""

    def __init__(self, shards: Sequence[Rows]) -> None:
        super().__init__(shards[0].path)
        self.shards = shards
        self.firsts: list[int] = []  # number of each shard's first row
        self.unit = shards[0].unit

    def scan(self) -> Iterator[tuple[int, Row | RowError]]:
        self.firsts = []
        first = 0
        for shard in self.shards:
            self.firsts.append(first)
            last = -1
            for last, row in shard.scan():
                yield first + last, row
            first += last + 1

    def __getitem__(self, number: int) -> Row:
        shard, there = self._find(number)
        return shard[there]

    def place(self, number: int) -> tuple[str, int]:
        shard, there = self._find(number)
        return shard.place(there)

    def _find(self, number: int) -> tuple[Rows, int]:
        which = bisect_right(self.firsts, number) - 1
        return self.shards[which], number - self.firsts[which]
