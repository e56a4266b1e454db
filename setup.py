"""Builds the kernel libraries: g++ for csrc/cpu, nvcc for csrc/cuda.

Both use libtorch's stable ABI, so a library depends neither on the version of Python nor (from 2.11
on) of PyTorch, and the build needs PyTorch's headers but never imports it. Where a compiler or
PyTorch is missing, a library is left out, and the package gets a file that says why: r1kernels then
runs on its PyTorch references and warns when it is imported. Without any library the wheel is a
pure one.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
OLDEST_TORCH = (2, 11)  # that can load the libraries
TORCH_TARGET_VERSION = f"0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"

# Every file of csrc/cpu is compiled once for each of these; its common/isa.h chooses at run time.
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
AVX512BF16 = [*AVX512, "-mavx512bf16", "-mavx512vbmi"]
X86_ISAS = {
    "scalar": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512bf16": AVX512BF16,
    "amx": [*AVX512BF16, "-mamx-tile", "-mamx-bf16"],
}
CPU_FLAGS = ["-O3", "-std=c++20", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter",
             "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]  # fmt: skip
# With R1KERNELS_SANITIZE in the environment: another library, for `make test-sanitize`.
SANITIZE = "R1KERNELS_SANITIZE" in os.environ
# An empty tensor has no address, and copying no bytes from there is what memcpy is asked to do.
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all",
              "-fno-sanitize=nonnull-attribute"]  # fmt: skip
CUDA_ARCHS = {"_sm90": ["90a"], "": ["80", "89", "90a", "100"]}  # by the end of the file's name
# Products and sums are fused where the source says fma: a number is then the same wherever it is
# computed, and as the emulator of the tests computes it.
CUDA_FLAGS = ["-O3", "-std=c++20", "-fmad=false", "-Xcompiler=-fPIC"]


def find_torch() -> Path | None:
    """Where PyTorch is installed. An isolated build hides it from imports but not from the disk."""
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    candidates = (Path(sysconfig.get_path(key)) / "torch" for key in ("purelib", "platlib"))
    return next((path for path in candidates if (path / "include").is_dir()), None)


COMPILER = {"cpp": os.environ.get("CXX", "g++"), "cuda": "nvcc"}
FOLDERS = {"cpp": "csrc/cpu", "cuda": "csrc/cuda"}


def lacking(backend: str) -> str | None:
    """Why the library of ``backend`` cannot be built here, or None."""
    torch = find_torch()
    if torch is None:
        return "PyTorch was not found when r1kernels was built"
    version = version_of(torch)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
        return f"PyTorch {version} was found when r1kernels was built, which needs 2.11 or newer"
    if shutil.which(COMPILER[backend]) is None:
        return f"{COMPILER[backend]} was not found when r1kernels was built"
    return None


def version_of(torch: Path) -> str:
    found = re.search(r"^__version__ = '(.+)'", (torch / "version.py").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"r1kernels: {torch / 'version.py'} has no __version__")
    return found[1]


class BuildReasons(build_py):
    """Puts ``_build.json`` into the package: for each library that is not built, the reason."""

    def run(self) -> None:
        super().run()
        package = ROOT if self.editable_mode else Path(self.build_lib)
        reasons = {name: reason for name in COMPILER if (reason := lacking(name))}
        for name, reason in reasons.items():
            print(f"r1kernels: the {name} kernels are left out: {reason}", flush=True)
        (package / "r1kernels/_build.json").write_text(json.dumps(reasons) + "\n")


class BuildKernels(build_ext):
    def build_extensions(self) -> None:
        for ext in self.extensions:
            self.build_library(ext)

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + (".sanitize.so" if SANITIZE else ".so")

    def build_library(self, ext: Extension) -> None:
        backend = ext.name.rpartition("._")[2]
        torch, compiler = find_torch(), COMPILER[backend]
        includes = [f"-I{ROOT / 'csrc'}", f"-I{torch / 'include'}",
                    f"-I{torch / 'include/torch/csrc/api/include'}"]  # fmt: skip
        defines = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
        make = self.cpu_commands if backend == "cpp" else self.cuda_commands
        # pip's own folders for objects are gone after an editable install: with this one, only what
        # changed is compiled the next time.
        name = "sanitize" if SANITIZE else backend
        folder = ROOT / "build/objects" / f"{name}-torch-{version_of(torch)}"
        folder.mkdir(parents=True, exist_ok=True)
        if backend == "cpp":  # the algebra of the losses is written once, in Python
            algebra = ROOT / "r1kernels/policy/surrogates.py"
            translator = ROOT / "csrc/cpu/policy/surrogates_header.py"
            generated = folder / "surrogates.h"
            run([sys.executable, str(translator), str(algebra), str(generated)])
            includes.append(f"-I{folder}")
        commands = [
            [compiler, *flags, *includes, *defines, "-c", source, "-o", str(folder / name)]
            for source in ext.sources
            for name, flags in make(source)
        ]
        folders = (ROOT / FOLDERS[backend], ROOT / "csrc/common", folder)
        headers = [path for each in folders for path in each.rglob("*.h")]
        newest_header = max(path.stat().st_mtime for path in headers)
        stale = [command for command in commands if is_stale(command, newest_header)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = pool.map(run, stale)
            for number, command in enumerate(stale, start=1):
                next(compiled)
                print(f"[{number}/{len(stale)}] {Path(command[-1]).name}", flush=True)
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        objects = [command[-1] for command in commands]
        link = [f"-L{torch / 'lib'}", "-ltorch_cpu", *(SANITIZERS if SANITIZE else [])]
        run([compiler, "-shared", *objects, *link, "-o", str(output)])

    def cpu_commands(self, source: str) -> list[tuple[str, list[str]]]:
        on_x86 = platform.machine() in ("x86_64", "AMD64")
        isas = X86_ISAS if on_x86 else {"scalar": []}
        extra = []
        if SANITIZE:
            isas, extra = of_this_machine(isas), ["-O1", "-g1", *SANITIZERS]
        available = [f"-DR1_HAS_{isa.upper()}" for isa in isas]
        return [
            (f"{object_name(source)}.{isa}.o", [*CPU_FLAGS, *flags, *extra, *available,
                                                f"-DR1_ISA={isa}", f"-DR1_ISA_IS_{isa.upper()}"])
            for isa, flags in isas.items()
        ]  # fmt: skip

    def cuda_commands(self, source: str) -> list[tuple[str, list[str]]]:
        stem = Path(source).stem
        suffix = next(suffix for suffix in CUDA_ARCHS if stem.endswith(suffix))
        known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True).stdout
        archs = [arch for arch in CUDA_ARCHS[suffix] if f"sm_{arch.rstrip('a')}" in known.split()]
        gencode = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        return [(f"{object_name(source)}.o", [*CUDA_FLAGS, *gencode])]


class AnyPythonWheel(bdist_wheel):
    """py3-none-<platform>, or py3-none-any where no library is built: for no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def of_this_machine(isas: dict[str, list[str]]) -> dict[str, list[str]]:
    """Plain code, AVX2, and the best set that runs here: the sanitizers make compiling slow."""
    info = Path("/proc/cpuinfo")
    words = {word.replace("_", "") for word in info.read_text().split()} if info.exists() else set()
    able = [isa for isa, flags in isas.items() if {f[2:].replace("-", "") for f in flags} <= words]
    return {isa: isas[isa] for isa in able if isa in ("scalar", "avx2", able[-1])}


def object_name(source: str) -> str:
    """moe.route of csrc/cpu/moe/route.cpp: several families have a file of the same name."""
    return ".".join(Path(source).with_suffix("").parts[2:])


def is_stale(command: list[str], newest_header: float) -> bool:
    source, output = Path(command[-3]), Path(command[-1])
    newest = max(source.stat().st_mtime, newest_header, Path(__file__).stat().st_mtime)
    return not output.exists() or output.stat().st_mtime < newest


def run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    log = (result.stdout + result.stderr).strip()
    if log:
        print(log)
    if result.returncode:
        raise SystemExit(
            f"r1kernels: this command failed:\n{' '.join(command)}\n{log}\n"
            f"Without {command[0]} on PATH, r1kernels installs without this library."
        )


def sources(folder: str, suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(f"*{suffix}"))


LIBRARIES = {"cpp": sources(FOLDERS["cpp"], ".cpp"), "cuda": sources(FOLDERS["cuda"], ".cu")}
if SANITIZE:
    del LIBRARIES["cuda"]

setup(
    ext_modules=[
        Extension(f"r1kernels._{backend}", files)
        for backend, files in LIBRARIES.items()
        if lacking(backend) is None
    ],
    cmdclass={
        "build_py": BuildReasons,
        "build_ext": BuildKernels,
        "bdist_wheel": AnyPythonWheel,
    },
)
