"""Fixtures: the CUDA kernels on the GPU, and without one, compiled for tests/cuda_emulator."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from r1kernels import native

ROOT = Path(__file__).parents[1]
TORCH = Path(torch.__file__).parent
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))


class Kernels(NamedTuple):
    ops: Any
    device: str


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("emulated")
    flags = ["-std=c++20", "-O1", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off",
             "-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT / 'tests/cuda_emulator'}",
             f"-I{ROOT / 'csrc'}", f"-I{TORCH / 'include'}",
             f"-I{TORCH / 'include/torch/csrc/api/include'}"]  # fmt: skip

    def compiled(source: Path) -> Path:
        output = folder / f"{source.stem}.o"
        run("g++", *flags, "-x", "c++", "-c", source, "-o", output)
        return output

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, SOURCES))
    run("g++", "-shared", *objects, f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-o", folder / "lib.so")
    torch.ops.load_library(str(folder / "lib.so"))
    return torch.ops.r1_emulated_cuda


def run(*command: str | Path) -> None:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(params=["sm_80", "sm_90", *(["gpu"] if torch.cuda.is_available() else [])])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    if request.param == "gpu":
        assert native.load("cuda") is None
        return Kernels(torch.ops.r1_cuda, "cuda")
    monkeypatch.delenv("R1_EMULATE_SM90", raising=False)
    if request.param == "sm_90":
        monkeypatch.setenv("R1_EMULATE_SM90", "1")
    return Kernels(request.getfixturevalue("emulated"), "cpu")
