"""What a stage says in figures: table.json, which a recipe's findings read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_table(folder: Path, figures: Mapping[str, Any]) -> Path:
    """Writes `folder/table.json`: numbers by name, NaN as null, and for some of them a list with
    one of each problem in `per_problem`."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }
    folder.mkdir(exist_ok=True)
    path = folder / "table.json"
    path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    return path
