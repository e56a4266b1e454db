"""HuggingFace folders with safetensors, which every other tool can load."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.schema import ConfigError
from r1train.model.lora import export

UNFINISHED, PREVIOUS = ".partial", ".previous"


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> Path:
    """Writes model and tokenizer to `folder`, replacing it only once all of it is on the disk.

    At every moment one whole checkpoint is there, after a crash or a power cut too: the old one
    until the new one is written and synced, as `folder` or, between two renames, as
    `folder.previous`. `folder.partial` is what was not finished. Raises ConfigError where it cannot
    be written, as on a full disk.
    """
    partial = folder.with_name(folder.name + UNFINISHED)
    previous = folder.with_name(folder.name + PREVIOUS)
    try:
        removed(partial)
        write_model(model, tokenizer, partial)
        synced(partial)
        if folder.exists():
            removed(previous)
            os.rename(folder, previous)
        os.rename(partial, folder)
        synced_folder(folder.parent)
        removed(previous)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"the checkpoint {folder} cannot be written: {reason}; make room, or choose another "
            "output_dir"
        ) from error
    return folder


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The files of model and tokenizer, adapters added in."""
    export(model, folder)
    tokenizer.save_pretrained(folder)


def synced(folder: Path) -> None:
    """Everything below `folder` is on the disk, and not only in the system's memory."""
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(place, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        synced_folder(Path(place))


def synced_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def removed(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
