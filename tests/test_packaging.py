"""``pip wheel .`` gives a wheel that works beside torch alone, with its compiled kernels in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMOKE = """
import sys
import torch
import r1kernels
from r1kernels import native

assert r1kernels.__file__.startswith(sys.argv[1]), r1kernels.__file__
hidden = torch.randn(5, 8, requires_grad=True)
weight = torch.randn(11, 8, requires_grad=True)
r1kernels.linear_logprob(hidden, weight, torch.arange(5)).logprob.sum().backward()
assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()
print(native.load("cpp"))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that the checkout's own build stays as it is.

    Object files of that build come along where there are any: those that are fresh are reused.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    objects = [path.relative_to(ROOT) for path in ROOT.glob("build/temp*")]
    for name in ("csrc", "r1kernels", "r1train", *objects):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-w", folder, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_both_packages_their_data_and_the_kernels(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"r1kernels/op.py", "r1kernels/py.typed", "r1train/cli.py"} <= set(names)
    assert any(name.startswith("r1train/recipes/") for name in names)
    assert ("r1kernels/_cpp.so" in names) == (shutil.which("g++") is not None)
    assert not any(name.startswith(("tests", "benchmarks", "csrc")) for name in names)


def test_the_wheel_is_for_any_python_on_this_platform(wheel: Path) -> None:
    assert wheel.name.startswith("r1kernels-")
    assert "-py3-none-" in wheel.name


def test_the_installed_wheel_works_beside_torch(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    run(
        sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target,
        wheel, cwd=tmp_path,
    )  # fmt: skip
    printed = run(sys.executable, "-c", SMOKE, str(target), cwd=tmp_path, PYTHONPATH=str(target))
    assert (printed.strip() == "None") == (shutil.which("g++") is not None)
