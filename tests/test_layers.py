"""Who may import whom: the second drawing of docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each imports only what comes after it. "" is a module that lies in no folder.
R1TRAIN = (
    *("cli", "run", "stages", "learn", "engine", "rewards", "model", "data", "report", "config"),
    "",
)
NAMED = {"trainer", "toml", "schema"}  # public names of before: they import what they name
ABOVE = {"__main__", *NAMED}


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, inside its functions too, but not for type checkers alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def house(parts: tuple[str, ...], houses: tuple[str, ...]) -> str:
    return parts[0] if parts and parts[0] in houses else ""


def climbing(package: str, houses: tuple[str, ...]) -> list[str]:
    """Imports that point up."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        if parts[0] in ABOVE:
            continue
        here = houses.index(house(parts, houses))
        for module in imports(path):
            top, *inner = module.split(".")
            if top == package and houses.index(house(tuple(inner), houses)) < here:
                found.append(f"{path.relative_to(ROOT)} imports {module}")
    return found


def test_imports_of_the_trainer_point_down():
    assert climbing("r1train", R1TRAIN) == []


@pytest.mark.parametrize("folder", [path for path in R1TRAIN if path not in ("", "cli")])
def test_every_house_of_the_trainer_stands(folder):
    assert (ROOT / "r1train" / folder / "__init__.py").exists()


def test_an_import_that_points_up_is_found(tmp_path, monkeypatch):
    package = tmp_path / "r1train"
    (package / "data").mkdir(parents=True)
    (package / "data" / "problems.py").write_text("from r1train.run.trainer import Trainer\n")
    monkeypatch.setattr("tests.test_layers.ROOT", tmp_path)
    assert climbing("r1train", R1TRAIN) == [
        "r1train/data/problems.py imports r1train.run.trainer",
    ]
