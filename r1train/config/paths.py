"""Options that are paths: relative ones are of the folder that a run was started in."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILES = {"jsonl", "heldout_jsonl", "path", "heldout_path", "teacher", "value_model"}
"""Options that name a file or a folder whose contents are an input."""


def anchored(value: Any, folder: Path, key: str = "") -> Any:
    """The options with absolute paths in the place of relative ones of `folder`, where something of
    that name is there: others may be the name of a stage or a preset."""
    if isinstance(value, Mapping):
        return {name: anchored(inner, folder, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [anchored(inner, folder, key) for inner in value]
    if isinstance(value, str) and key in FILES:
        there = (folder / value).exists() or glob.glob(value, root_dir=folder)
        return str(folder / value) if there else value
    if isinstance(value, str) and key == "functions":  # file.py:name
        file = value.rpartition(":")[0]
        return str(folder / value) if file and (folder / file).is_file() else value
    return value
