"""CUDA kernels compile without a GPU, spill no register, and use the instructions they should."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
import torch

from r1kernels.core import native
from tests.build_cache import cached_build
from tests.emulated_cuda import run

ROOT = Path(__file__).parents[2]
INCLUDE = Path(torch.__file__).parent / "include"
SOURCES = sorted((ROOT / "csrc/cuda").rglob("*.cu"))
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
builds = pytest.mark.slow  # minutes of a core where nothing is kept from before


def find_cuobjdump() -> str | None:
    """On PATH, or the one that Triton brings."""
    spec = importlib.util.find_spec("triton")
    folders = [] if spec is None or spec.origin is None else [Path(spec.origin).parent]
    brought = [str(folder / "backends/nvidia/bin/cuobjdump") for folder in folders]
    return next(filter(None, map(shutil.which, ["cuobjdump", *brought])), None)


class Built(NamedTuple):
    """What nvcc says of one file, the PTX it makes for each architecture, and its code."""

    log: str
    ptx: dict[str, str]
    code: Path


def name_of(source: Path) -> str:
    """With its family, since several may have a file of the same name."""
    return f"{source.parent.name}/{source.stem}"


def archs(source: Path) -> tuple[str, ...]:
    return ("90a",) if source.stem.endswith("_sm90") else ("80", "89", "90a", "100")


FLAGS = ["-O3", "-std=c++20", "-fmad=false", "-Xcompiler=-fPIC", "-Xptxas=-v", f"-I{ROOT / 'csrc'}",
         f"-I{INCLUDE}", f"-I{INCLUDE / 'torch/csrc/api/include'}",
         "-DTORCH_TARGET_VERSION=0x020b000000000000"]  # fmt: skip


def build(source: Path) -> Built:
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs(source)]

    def make(folder: Path) -> None:
        with TemporaryDirectory(dir=folder.parent) as scratch:
            command = ["nvcc", "-c", *targets, *FLAGS, "--keep", "--keep-dir", scratch]
            log = run(*command, source, "-o", folder / "kernels.o")
            (folder / "log").write_text(log)
            for path in Path(scratch).glob("*.ptx"):
                shutil.copy(path, folder)

    headers = sorted((ROOT / "csrc").rglob("*.h"))
    made_from = [run("nvcc", "--version"), torch.__version__, *targets, *FLAGS, *headers, source]
    folder = cached_build(f"nvcc-{name_of(source).replace('/', '-')}", made_from, make)
    texts = [path.read_text() for path in folder.glob("*.ptx")]
    return Built(
        (folder / "log").read_text(),
        {found(r"\.target sm_(\w+)", text): text for text in texts},
        folder / "kernels.o",
    )


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, text[:1000]
    return match[1]


@pytest.fixture(scope="module")
def built() -> dict[str, Built]:
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(map(name_of, SOURCES), pool.map(build, SOURCES), strict=True))


@builds
@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_no_register_is_spilled(source: Path, built: dict[str, Built]) -> None:
    log = built[name_of(source)].log
    compiled = re.findall(
        r"function '\w*?\d(\w+)' for 'sm_(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill "
        r"loads.*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    for name, arch, _, _, registers in compiled:
        print(f"{name_of(source)} sm_{arch} {name}: {registers} registers")
    assert {arch for _, arch, *_ in compiled} == set(archs(source)), log
    assert {(stores, loads) for _, _, stores, loads, _ in compiled} == {("0", "0")}, log


@needs_nvcc
def test_the_library_loads_without_a_gpu() -> None:
    assert native.load("cuda") is None


@builds
@needs_nvcc
def test_logits_are_read_and_gradients_written_16_bytes_at_a_time(built: dict[str, Built]) -> None:
    for arch, ptx in built["head/logprob"].ptx.items():
        for access in ("ld.global.v4", "st.global.v4"):
            assert access in ptx.replace("ld.global.nc", "ld.global"), f"sm_{arch}: no {access}"


@builds
@needs_nvcc
@pytest.mark.parametrize(
    "instruction",
    [
        "cp.async.bulk.shared::cluster.global.mbarrier",  # a slice comes without registers
        "mbarrier.try_wait.parity",
        "ld.shared.v4",
        "mapa.u64",  # another block's shared memory
        "barrier.cluster.arrive.release",
        "barrier.cluster.wait.acquire",
    ],
)
def test_a_row_on_sm90_is_a_cluster(instruction: str, built: dict[str, Built]) -> None:
    assert instruction in built["head/logprob_sm90"].ptx["90a"]


@builds
@needs_nvcc
def test_many_rows_on_sm90_come_through_a_ring(built: dict[str, Built]) -> None:
    ptx = built["head/logprob_ring_sm90"].ptx["90a"]
    for instruction in (
        "cp.async.bulk.shared::cluster.global.mbarrier",
        "mbarrier.try_wait.parity",
        "ld.shared.v4",
        "max.bf16x2",
    ):
        assert instruction in ptx, instruction
    assert "ld.global.v4" not in ptx  # all of a row comes by copies


FP8_PRODUCTS = ("fp8/gemm_sm90", "fp8/grouped_gemm_sm90", "fp8/grouped_wgrad_sm90")


@builds
@needs_nvcc
@pytest.mark.parametrize("name", FP8_PRODUCTS)
def test_fp8_products_keep_the_tensor_cores_busy(name: str, built: dict[str, Built]) -> None:
    """No product waits for the one before (C7510), and registers change hands (C7508)."""
    assert not re.findall(r"C75\d\d", built[name].log), built[name].log
    ptx = built[name].ptx["90a"]
    for instruction in (
        "setmaxnreg.inc", "setmaxnreg.dec", "cp.async.bulk.tensor.2d.shared", "multicast::cluster",
        "cp.async.bulk.tensor.2d.global", "cp.reduce.async.bulk.tensor", "stmatrix",
        "griddepcontrol.wait",
    ):  # fmt: skip
        assert instruction in ptx, instruction


@builds
@needs_nvcc
def test_few_rows_in_fp8_do_not_wait_for_the_product_before(built: dict[str, Built]) -> None:
    found = built["fp8/linear_forward_sm90"]
    assert not re.findall(r"C75\d\d", found.log), found.log
    for instruction in (
        "m64n16k32",
        "m64n64k32",
        "wait_group.sync.aligned 1",
        "griddepcontrol.wait",
    ):
        assert instruction in found.ptx["90a"], instruction


@builds
@needs_nvcc
@pytest.mark.skipif(find_cuobjdump() is None, reason="cuobjdump is not installed")
@pytest.mark.parametrize("name", FP8_PRODUCTS)
def test_fp8_products_are_wgmma_of_fp8(name: str, built: dict[str, Built]) -> None:
    command = [str(find_cuobjdump()), "-sass", str(built[name].code)]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernels = re.split(r"Function : ", sass)[1:]
    products = [kernel for kernel in kernels if "fp8_product" in kernel.split()[0]]
    assert products
    for kernel in products:
        assert re.search(r"QGMMA.64x(128|192)x32.F32.E4M3.E4M3", kernel)
        # One product is waited for at a time, in the main loop alone.
        assert kernel.count("WARPGROUP.DEPBAR") == kernel.count("QGMMA") / 4
