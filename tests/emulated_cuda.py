"""Fixtures: the CUDA kernels on the GPU, and without one, compiled for tests/cuda_emulator."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any, NamedTuple

import pytest
import torch

from r1kernels.core import native
from tests.build_cache import cached_build

ROOT = Path(__file__).parents[1]
TORCH = Path(torch.__file__).parent
SOURCES = sorted((ROOT / "csrc/cuda").rglob("*.cu"))


class Kernels(NamedTuple):
    ops: Any
    device: str


FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off",
         "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT / 'tests/cuda_emulator'}",
         f"-I{ROOT / 'csrc'}", f"-I{TORCH / 'include'}",
         f"-I{TORCH / 'include/torch/csrc/api/include'}"]  # fmt: skip


@pytest.fixture(scope="session")
def emulated() -> Any:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    # g++ takes a minute for all of them, and most changes are to one.
    compiler = run("g++", "--version")
    headers = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "tests/cuda_emulator").rglob("*.h")]
    shared = [compiler, torch.__version__, *FLAGS, *sorted(headers)]

    def compiled(source: Path) -> Path:
        def make(folder: Path) -> None:
            run("g++", *FLAGS, "-x", "c++", "-c", source, "-o", folder / "kernels.o")

        return (
            cached_build(f"emulated-{source.parent.name}-{source.stem}", [*shared, source], make)
            / "kernels.o"
        )

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, SOURCES))

    def link(folder: Path) -> None:
        libraries = (f"-L{TORCH / 'lib'}", "-ltorch_cpu")
        run("g++", "-shared", *objects, *libraries, "-o", folder / "lib.so")

    library = cached_build("emulated", [compiler, torch.__version__, *objects], link) / "lib.so"
    torch.ops.load_library(str(library))
    return torch.ops.r1_emulated_cuda


def run(*command: str | Path) -> str:
    """What it printed, errors and warnings too."""
    result = subprocess.run([str(part) for part in command], stdout=PIPE, stderr=STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(params=["sm_80", "sm_90", *(["gpu"] if torch.cuda.is_available() else [])])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    if request.param == "gpu":
        assert native.load("cuda") is None
        return Kernels(torch.ops.r1_cuda, "cuda")
    monkeypatch.delenv("R1_EMULATE_SM90", raising=False)
    if request.param == "sm_90":
        monkeypatch.setenv("R1_EMULATE_SM90", "1")
    return Kernels(request.getfixturevalue("emulated"), "cpu")
