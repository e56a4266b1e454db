"""``pip wheel .`` gives a wheel that works beside torch alone, with its compiled kernels in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import setuptools

import r1kernels

pytestmark = pytest.mark.slow  # compiles all of csrc, where there are no object files of it

ROOT = Path(__file__).parents[2]
SMOKE = """
import sys
import torch
import r1kernels
from r1kernels.core import native

assert r1kernels.__file__.startswith(sys.argv[1]), r1kernels.__file__
hidden = torch.randn(5, 8, requires_grad=True)
weight = torch.randn(11, 8, requires_grad=True)
r1kernels.linear_logprob(hidden, weight, torch.arange(5)).logprob.sum().backward()
assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()
print(native.load("cpp"))
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def smoke(wheel: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Install the wheel beside torch and use it; prints why the CPU kernels are absent, or None."""
    target = folder / "site"
    run(
        sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target,
        wheel, cwd=folder,
    )  # fmt: skip
    return run(sys.executable, "-c", SMOKE, str(target), cwd=folder, PYTHONPATH=str(target))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that the checkout's own build stays as it is.

    Object files of that build come along where there are any: those that are fresh are reused.
    """
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "_build.json")
    objects = [path.relative_to(ROOT) for path in ROOT.glob("build/objects")]
    for name in ("csrc", "r1kernels", "r1train", *objects):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)  # with its time: objects are as old as it is
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-w", folder, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def wheel_without_torch(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by a Python that has setuptools and no PyTorch."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=False)
    tools = folder / "tools"
    tools.mkdir()
    for path in Path(setuptools.__file__).parents[1].glob("*"):
        if path.name.startswith(("setuptools", "_distutils_hack")):
            (tools / path.name).symlink_to(path)
    python = folder / "venv/bin/python"
    shutil.rmtree(source / "build/lib", ignore_errors=True)  # of another build
    run(
        python, "setup.py", "-q", "bdist_wheel", "-d", folder, "-b", folder / "work",
        cwd=source, PYTHONPATH=str(tools),
    )  # fmt: skip
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_both_packages_their_data_and_the_kernels(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"r1kernels/core/op.py", "r1kernels/py.typed", "r1train/cli.py"} <= set(names)
    assert any(name.startswith("r1train/recipes/") for name in names)
    assert ("r1kernels/_cpp.so" in names) == (shutil.which("g++") is not None)
    assert not any(name.startswith(("tests", "benchmarks", "csrc")) for name in names)


def test_the_wheel_is_for_any_python_on_this_platform(wheel: Path) -> None:
    assert wheel.name.startswith("r1kernels-")
    assert "-py3-none-" in wheel.name


def test_the_installed_wheel_works_beside_torch(wheel: Path, tmp_path: Path) -> None:
    printed = smoke(wheel, tmp_path).stdout
    assert (printed.strip() == "None") == (shutil.which("g++") is not None)


def test_a_wheel_built_without_torch_is_pure_and_warns_what_to_install(
    wheel_without_torch: Path, tmp_path: Path
) -> None:
    assert wheel_without_torch.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel_without_torch).namelist()
    assert not any(name.endswith(".so") for name in names)
    done = smoke(wheel_without_torch, tmp_path)
    assert done.stderr.count("RuntimeWarning") == 1
    for part in ("CPU kernels are absent", "PyTorch was not found when r1kernels was built",
                 "install torch>=2.11", "--no-build-isolation"):  # fmt: skip
        assert part in done.stderr
    assert "compiler" not in done.stderr


def test_the_version_of_the_package_is_that_of_the_wheel(wheel: Path) -> None:
    assert wheel.name.split("-")[1] == r1kernels.__version__
