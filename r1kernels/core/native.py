"""Loads the compiled libraries, and says why one is absent.

Each library registers its kernels in a namespace of its own (``torch.ops.r1_cpp``,
``torch.ops.r1_cuda``) through libtorch's stable ABI, so one binary serves several versions of
Python and PyTorch. A kernel has the name and the schema of the op that it implements; a variant,
beside the plain kernel of its backend, has the name ``<op>__<variant>``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch

REINSTALL = "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps r1kernels"
# What `make test-sanitize` builds stands beside the usual library.
SUFFIX = ".sanitize.so" if "R1KERNELS_SANITIZE" in os.environ else ".so"
PACKAGE = Path(__file__).parents[1]
DEVICE = {"cpp": "cpu", "cuda": "cuda"}
DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)


@cache
def load(backend: str) -> str | None:
    """Load the library of ``backend`` once; the reason why it is absent, or None."""
    path = PACKAGE / f"_{backend}{SUFFIX}"
    if not path.exists():
        return _why_missing(backend, path)
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} does not load beside torch {torch.__version__}: {error}"
    return None


def _why_missing(backend: str, library: Path) -> str:
    """Why there is no such library, and what to do."""
    package = library.parent
    reasons_file = package / "_build.json"
    reason = json.loads(reasons_file.read_text()).get(backend) if reasons_file.exists() else None
    if reason is not None:
        compiler = "a C++ compiler" if backend == "cpp" else "nvcc"
        needed = "torch>=2.11" if reason.startswith("PyTorch") else compiler
        return f"{reason} (install {needed}, then: {REINSTALL})"
    if (installed := _installed()) not in (None, package) and (installed / library.name).exists():
        return (
            f"this is the source tree {package.parent}, where no kernels are built; the installed "
            f"r1kernels in {installed.parent} has them (run from another folder, or install the "
            "tree: pip install --no-build-isolation -e .)"
        )
    if (package.parent / "setup.py").exists():
        return (
            f"{library.name} is not built in the source tree {package.parent} "
            "(python setup.py build_ext --inplace, or pip install --no-build-isolation -e .)"
        )
    return f"{library.name} is missing from {package} (install torch>=2.11, then: {REINSTALL})"


def _installed() -> Path | None:
    """The folder of the installed package, which need not be the imported one."""
    try:
        return Path(str(distribution("r1kernels").locate_file("r1kernels"))).resolve()
    except PackageNotFoundError:
        return None


def processor(device: torch.device) -> str:
    """What decides the speed there: a GPU's name, or the instructions of the C++ kernels."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and load("cpp") is None:
        found: str = torch.ops.r1_cpp.isa()
        return found
    return device.type


def architecture(device: torch.device) -> str:
    """Of a GPU: "sm_90", or on AMD's "gfx942"."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName.split(":")[0])
    return f"sm_{properties.major}{properties.minor}"


def kernel_name(op: str, variant: str) -> str:
    """Of a variant, or with "" of the plain kernel, in the library."""
    return f"{op}__{variant}" if variant else op


@cache
def kernel(backend: str, name: str) -> Any:
    return getattr(getattr(torch.ops, f"r1_{backend}"), name).default


@cache
def absent(backend: str, name: str) -> str | None:
    """Why the library of ``backend`` has no kernel ``name``, or None when it has.

    Raises:
        RuntimeError: it has one of another version of the op: the library is stale.
    """
    if (reason := load(backend)) is not None:
        return reason
    if not hasattr(getattr(torch.ops, f"r1_{backend}"), name):
        return f"csrc has no {backend} kernel of {name}"
    op = getattr(torch.ops.r1kernels, name.partition("__")[0]).default
    built, declared = (
        [(a.name, str(a.type)) for a in overload._schema.arguments]
        for overload in (kernel(backend, name), op)
    )
    if built != declared:
        raise RuntimeError(
            f"r1kernels/_{backend}.so is not of this version: its {name} takes {built}, "
            f"expected {declared}; reinstall r1kernels to build it again"
        )
    return None


def able(backend: str, name: str, args: Sequence[Any]) -> bool | str:
    """True, or the reason why the compiled kernel cannot take these arguments."""
    if (reason := absent(backend, name)) is not None:
        return reason
    device = DEVICE[backend]
    for arg in args:
        if not isinstance(arg, torch.Tensor):
            continue
        if arg.device.type != device:
            return f"takes {device} tensors, got one on {arg.device}"
        if arg.dtype not in DTYPES and arg.is_floating_point():
            return f"takes float32 and bfloat16, got {str(arg.dtype).removeprefix('torch.')}"
    return True
