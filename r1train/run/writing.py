"""Files and folders that are replaced only by what is whole, and what is said where that fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from r1train.config.schema import ConfigError

UNFINISHED, PREVIOUS = ".partial", ".previous"


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Within it what `path` is to be, a folder, a file or a link, is written to the path given.

    At the end it is on the disk and in its place. At every moment something whole is there, after a
    crash or a power cut too: the old one until the new one is written and synced, as `path` or, of
    a folder, between two renames, as `path.previous`. What a process that was killed has not
    finished is `path.partial`.
    """
    partial, previous = (path.with_name(path.name + suffix) for suffix in (UNFINISHED, PREVIOUS))
    try:
        removed(partial)
        yield partial
        synced(partial)
        # A folder takes the place of nothing, and nothing that of a folder.
        if _is_folder(path) or (_is_folder(partial) and os.path.lexists(path)):
            removed(previous)
            os.rename(path, previous)
        os.rename(partial, path)
    except BaseException:
        with suppress(OSError):
            removed(partial)  # what it holds is room for nothing
        raise
    synced_folder(path.parent)
    removed(previous)


@contextmanager
def writing(path: Path, otherwise: str = "") -> Iterator[None]:
    """Within it what fails of the disk, as when it is full, is a ConfigError that names `path`, and
    ends with the words `otherwise`."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        raise ConfigError(
            f"{path} cannot be written: {_reason(error)}; make room, or choose another output_dir"
            f"{otherwise}"
        ) from error


def synced(path: Path) -> None:
    """A file, or everything below a folder, is on the disk, and not only in the system's memory."""
    if path.is_symlink():
        return  # it is part of the folder that it lies in
    if path.is_file():
        _sync(path, os.O_RDONLY)
    for place, _, names in os.walk(path):
        for name in names:
            _sync(Path(place, name), os.O_RDONLY)
        synced_folder(Path(place))


def synced_folder(folder: Path) -> None:
    """The names in it are on the disk."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def removed(path: Path) -> None:
    """A folder, a file or a link is not there any more, if it was."""
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_folder(path: Path) -> bool:
    """And no link to one."""
    return path.is_dir() and not path.is_symlink()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    causes = getattr(error, "failures", None)
    if causes:  # of torch.distributed.checkpoint, by rank: an exception and its traceback
        error = next(iter(causes.values()))[0]
    return str(getattr(error, "strerror", None) or error)
