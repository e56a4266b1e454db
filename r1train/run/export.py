"""HuggingFace folders with safetensors, which every other tool can load."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.model.lora import export
from r1train.run.writing import replaced, writing


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> Path:
    """Writes model and tokenizer to `folder`, replacing it only once all of it is on the disk.

    Raises ConfigError where it cannot be written, as on a full disk.
    """
    with writing(folder), replaced(folder) as partial:
        write_model(model, tokenizer, partial)
    return folder


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The files of model and tokenizer, adapters added in."""
    export(model, folder)
    tokenizer.save_pretrained(folder)
