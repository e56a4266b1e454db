"""Checkpoints that training goes on from, bit for bit, after whatever happened to the process.

A checkpoint is a folder `checkpoint-STEP`, or `checkpoint-STEP-UPDATE` between the updates of a
step: a HuggingFace model, and in `state` everything else. Tensors are safetensors, written through
torch.distributed.checkpoint by the names of parameters, so that other numbers of processes can read
them; the rest is JSON. `state/manifest.json` is written last, with size and SHA-256 of every file.
Nothing is unpickled.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from r1train.run.checksums import checksums, fault
from r1train.run.writing import PREVIOUS, UNFINISHED, removed, replaced, writing

FORMAT = 1
TENSOR = "$tensor"
NAME = re.compile(r"checkpoint-(\d+)(?:-(\d+))?")
Place = tuple[int, int]
"""Complete steps of the stage, and updates since."""


class Damaged(Exception):
    """Why a checkpoint cannot be gone on from."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read."""

    path: Path
    place: Place
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one stage, in its folder; the newest `keep` of them stay (0: all)."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep
        for suffix in (UNFINISHED, PREVIOUS):  # of a process that was killed
            for path in folder.glob(f"checkpoint-*{suffix}"):
                with suppress(OSError):
                    removed(path)

    def save(
        self, place: Place, state: Mapping[str, Any] | None, export: Callable[[Path], None]
    ) -> Path:
        """Writes `state` and what `export` puts beside it; replaces nothing before it is whole.

        Without a state it is a model alone, which is not gone on from. At every moment, after a
        crash or a power cut too, the checkpoints before are there. Raises ConfigError where it
        cannot be written, as on a full disk.
        """
        path = self.folder / name_of(place)
        if (path / "state" / "manifest.json").exists() and _fault(path) is None:
            return path  # of the same place: the same state
        passed = ". The checkpoints before it stay: r1train resume goes on from the last"
        with writing(path, passed), replaced(path) as partial:
            partial.mkdir(parents=True)
            export(partial)
            if state is not None:
                _write(partial / "state", place, state)
        self._prune(path)
        return path

    def restore(self, device: torch.device) -> Saved | None:
        """The newest checkpoint that is whole, its tensors on `device`; None where there is none.

        Says which newer ones were passed over, and why.
        """
        for path in reversed(self.whole()):
            try:
                if wrong := _fault(path):
                    raise Damaged(wrong)
                return Saved(path, _place_of(path), _read(path / "state", device))
            except (Damaged, OSError, ValueError, KeyError, SafetensorError) as error:
                logging.getLogger("r1train").warning(
                    "%s cannot be gone on from: %s. The one before it is taken; where there is "
                    "none, the stage begins anew",
                    path,
                    error,
                )
        return None

    def whole(self) -> list[Path]:
        """The checkpoints that were written to their end, oldest first."""
        found = self.folder.glob("checkpoint-*/state/manifest.json")
        paths = (manifest.parent.parent for manifest in found)
        return sorted((p for p in paths if NAME.fullmatch(p.name)), key=_place_of)

    def _prune(self, newest: Path) -> None:
        """Keeps the `keep` last before and with `newest`: what comes after it was passed over."""
        known = self.whole()
        kept = [path for path in known if _place_of(path) <= _place_of(newest)][-self.keep :]
        for path in (path for path in known if self.keep and path not in kept):
            # Renamed first: a folder that is half removed must not look like a checkpoint.
            gone = path.with_name(path.name + PREVIOUS)
            with suppress(OSError):
                os.rename(path, gone)
                removed(gone)


def name_of(place: Place) -> str:
    step, update = place
    return f"checkpoint-{step}" + f"-{update}" * bool(update)


def _place_of(path: Path) -> Place:
    match = NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _write(folder: Path, place: Place, state: Mapping[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    tree = _split(state, "", tensors, {})
    folder.mkdir()
    with _quiet():
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder)))
    (folder / "state.json").write_text(json.dumps(tree))
    manifest = {"format": FORMAT, "place": list(place), "files": checksums(folder.parent)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _read(folder: Path, device: torch.device) -> dict[str, Any]:
    reader = HuggingFaceStorageReader(str(folder))
    described: Any = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(meta.size, dtype=meta.properties.dtype, device=device)
        for name, meta in described.items()
    }
    if tensors:
        with _quiet():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    state = _joined(json.loads((folder / "state.json").read_text()), tensors)
    assert isinstance(state, dict)
    return state


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where each is as it was written."""
    try:
        manifest = json.loads((path / "state" / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, and {FORMAT} is known"
        return fault(path, manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        return f"state/manifest.json cannot be read: {error}"


def _split(
    value: Any, name: str, tensors: dict[str, Tensor], known: dict[tuple[Any, ...], str]
) -> Any:
    """`value` with every tensor in `tensors` and its name in its place; a shared one once."""
    if isinstance(value, Tensor):
        same = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if value.numel() == 0 or same not in known:
            known[same] = name
            tensors[name] = value.detach().contiguous()
        return {TENSOR: known[same]}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{name}: a state's keys are strings, got {list(value)[:3]}")
        return {key: _split(item, f"{name}.{key}".lstrip("."), tensors, known)
                for key, item in value.items()}  # fmt: skip
    if isinstance(value, list | tuple):
        return [_split(item, f"{name}.{i}", tensors, known) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: {type(value).__name__} is neither a tensor nor plain data")


def _joined(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if tree.keys() == {TENSOR}:
            return tensors[tree[TENSOR]]
        return {key: _joined(item, tensors) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_joined(item, tensors) for item in tree]
    return tree


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch.distributed's word that there is one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
