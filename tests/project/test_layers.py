"""Who may import whom: the second drawing of docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import layers_drawing

ROOT = Path(__file__).parents[2]

# Each imports only those before it. The first folder of a path decides.
R1KERNELS = (
    "core",
    "triton",
    "elementwise",
    "attention",
    "head",
    "policy",
    "moe",
    "fp8",
    "nn",
    "hf",
)
# "" is a module that lies in no folder.
R1TRAIN = (
    *("", "config", "report", "sandbox", "data", "model", "rewards", "engine", "learn"),
    *("search", "stages", "run", "suite", "plan", "cli"),
)
LAYERS = {"r1kernels": R1KERNELS, "r1train": R1TRAIN}
NAMED = {"trainer", "toml", "schema", "__main__"}  # public names: they import what they name
FAMILIES = {path.parents[1].name for path in (ROOT / "r1kernels").glob("*/triton/__init__.py")}


def imported(path: Path, package: str) -> Iterator[str]:
    """The folders of the package that a file imports from, "" for what lies in none."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            top, *rest = module.split(".")
            if top == package:
                yield rest[0] if rest else ""


def climbing(folder: Path, package: str, layers: tuple[str, ...]) -> list[tuple[str, str]]:
    """Imports of a layer's files that are of no layer below, nor of its own."""
    below = layers[: layers.index(folder.name) + 1]
    files = sorted(folder.rglob("*.py"))
    assert files
    return [
        (path.name, name)
        for path in files
        for name in imported(path, package)
        if name in layers and name not in below
    ]


@pytest.mark.parametrize("layer", R1KERNELS)
def test_a_layer_of_the_kernels_imports_itself_and_those_below(layer: str) -> None:
    folder = ROOT / "r1kernels" / layer
    assert climbing(folder, "r1kernels", R1KERNELS) == []
    inside = {name for path in folder.rglob("*.py") for name in imported(path, "r1kernels")}
    assert inside <= set(R1KERNELS)  # nor what lies in no folder: that imports all of them


@pytest.mark.parametrize("layer", [name for name in R1TRAIN if name not in ("", "cli")])
def test_a_layer_of_the_trainer_imports_itself_and_those_below(layer: str) -> None:
    assert climbing(ROOT / "r1train" / layer, "r1train", R1TRAIN) == []


def test_the_ground_of_the_trainer_imports_no_layer() -> None:
    ground = [path for path in (ROOT / "r1train").glob("*.py") if path.stem not in {*NAMED, "cli"}]
    found = {name for path in ground for name in imported(path, "r1train")}
    assert found.isdisjoint(R1TRAIN[1:])


def test_every_folder_of_ops_has_its_layer() -> None:
    assert set(R1KERNELS) >= FAMILIES


def test_the_drawing_shows_the_layers() -> None:
    """If not: ``python -m tests.layers_drawing``."""
    assert layers_drawing.FIGURE.read_text() == layers_drawing.drawing(LAYERS)


def test_an_import_that_points_up_is_found(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "problems.py").write_text("from r1train.run.trainer import Trainer\n")
    assert climbing(tmp_path / "data", "r1train", R1TRAIN) == [("problems.py", "run")]
