"""Compile every Triton kernel without a GPU: ``python -m r1kernels.triton.build [family …]``.

Prints one JSON line for each kernel and target: registers, spilled bytes, shared memory, and which
of the expected instructions are missing. Not for use together with ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NVIDIA = (80, 89, 90, 100)
AMD = "gfx942"

# What products of 16-bit operands must compile to, by target.
MATRIX_UNIT = {80: r"mma\.sync", 89: r"mma\.sync", 90: r"wgmma\.mma_async", 100: r"tcgen05\.mma"}


@dataclass(frozen=True)
class Build:
    """One specialisation of a kernel that must compile; a module lists its own in ``BUILDS``.

    Args:
        kernel: the ``@triton.jit`` function, also as ``launched``.
        signature: its run-time arguments and their types, e.g. ``{"x": "*bf16", "rows": "i32"}``;
            that of a tuple is one too; anything else is a compile-time value, such as None.
        constexprs: its compile-time arguments.
        options: ``num_warps`` and ``num_stages``, as the launch table gives them.
        expects: by target (80, 89, 90, 100), a pattern that its PTX must have.
        targets: what it is compiled for; what uses something of NVIDIA's own leaves AMD out.
        aligned: pointers and integers that are multiples of 16, ``"tuple.member"`` too.
    """

    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, int] = field(default_factory=dict)
    expects: Mapping[int, str] = field(default_factory=dict)
    targets: tuple[int | str, ...] = (*NVIDIA, AMD)
    aligned: tuple[str, ...] = ()


def compile_for(build: Build, target: GPUTarget) -> Any:
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def type_of(name: str, kind: Any, path: tuple[int, ...]) -> Any:
        if name in build.aligned:
            attributes[path] = [["tt.divisibility", 16]]
        if isinstance(kind, str):
            return kind
        if not isinstance(kind, tuple):
            constants[path] = kind
            return "constexpr"
        fields = getattr(kind, "_fields", range(len(kind)))
        types = [
            type_of(f"{name}.{field}", member, (*path, index))
            for index, (field, member) in enumerate(zip(fields, kind, strict=True))
        ]
        return type(kind)(*types) if hasattr(kind, "_fields") else tuple(types)

    signature = {}
    kernel = getattr(build.kernel, "jit", build.kernel)
    for index, name in enumerate(kernel.arg_names):
        if name in build.constexprs:
            constants[(index,)] = build.constexprs[name]
            signature[name] = "constexpr"
        else:
            signature[name] = type_of(name, build.signature[name], (index,))
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=dict(build.options))


def report(module: str, build: Build, arch: int | str) -> dict[str, Any]:
    found: dict[str, Any] = {"module": module, "kernel": build.kernel.__name__, "target": arch}
    if arch == AMD:
        compiled = compile_for(build, GPUTarget("hip", AMD, 64))
        spills = re.findall(r"\.(?:s|v)gpr_spill_count:\s+(\d+)", compiled.asm["amdgcn"])
        return found | {"spills": sum(map(int, spills)), "missing": []}
    compiled = compile_for(build, GPUTarget("cuda", arch, 32))
    ptx = compiled.asm["ptx"]
    registers, spills = assembled(ptx)
    pattern = build.expects.get(int(arch))
    return found | {
        "registers": registers,
        "spills": spills,
        "shared": compiled.metadata.shared,
        "missing": [pattern] if pattern and not re.search(pattern, ptx) else [],
    }


def assembled(ptx: str) -> tuple[int, int]:
    """(registers, bytes of spill stores and loads) as the assembler reports them."""
    match = re.search(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    assert match is not None
    arch = match[1]
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    ptxas = tools / ("ptxas-blackwell" if arch.startswith("sm_10") else "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(ptxas), "-v", f"-arch={arch}", str(source), "-o", f"{folder}/kernel.cubin"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = max(map(int, re.findall(r"Used (\d+) registers", log)))
    spills = sum(map(int, re.findall(r"(\d+) bytes spill", log)))
    return registers, spills


def builds(names: Sequence[str] = ()) -> Iterator[tuple[str, Build, int | str]]:
    """Of some families or modules, such as "moe" and "moe.route"; of all where none is named."""
    for path in sorted(Path(__file__).parents[1].glob("*/triton/[!_]*.py")):
        family, module = path.parts[-3], path.stem
        if names and not {family, f"{family}.{module}"} & set(names):
            continue
        for build in getattr(import_module(f"r1kernels.{family}.triton.{module}"), "BUILDS", ()):
            for arch in build.targets:
                yield f"{family}.{module}", build, arch


def main() -> None:
    with ThreadPoolExecutor() as pool:
        for line in pool.map(lambda job: report(*job), builds(sys.argv[1:])):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
