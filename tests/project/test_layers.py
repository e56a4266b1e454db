"""Imports of the package point one way, from what knows more to what knows less."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "r1kernels"

# Each imports only those before it. The first folder of a path decides.
LAYERS = ("core", "triton", "elementwise", "head", "policy", "moe", "fp8", "nn", "hf")


def imported(path: Path) -> Iterator[str]:
    """The folders of the package that a file imports from, "" for the package itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            top, *rest = module.split(".")
            if top == "r1kernels":
                yield rest[0] if rest else ""


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_itself_and_those_below(layer: str) -> None:
    files = sorted((PACKAGE / layer).rglob("*.py"))
    assert files
    below = LAYERS[: LAYERS.index(layer) + 1]
    wrong = [(path.name, name) for path in files for name in imported(path) if name not in below]
    assert wrong == []


def test_every_folder_of_ops_has_its_layer() -> None:
    found = {path.parents[1].name for path in PACKAGE.glob("*/triton/__init__.py")}
    assert found <= set(LAYERS)
