"""CUDA kernels compile without a GPU, and keep everything in registers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_register_is_spilled(source: Path, arch: str, tmp_path: Path) -> None:
    if source.stem.endswith("_sm90") and arch != "sm_90a":
        pytest.skip(f"{source.name} is for sm_90a only")
    include = Path(torch.__file__).parent / "include"
    result = subprocess.run(
        ["nvcc", f"-arch={arch}", "-cubin", "-O3", "-std=c++20", "-DUSE_CUDA", "-Xptxas=-v",
         "-DTORCH_TARGET_VERSION=0x020b000000000000", "--expt-relaxed-constexpr",
         f"-I{ROOT / 'csrc'}", f"-I{include}", f"-I{include / 'torch/csrc/api/include'}",
         str(source), "-o", str(tmp_path / "kernels.cubin")],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    assert spills, result.stderr
    assert set(spills) == {("0", "0")}
