"""``import r1kernels`` stays light: counted in modules, since a clock would measure the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

SCRIPT = """
import json, sys
import torch
before = set(sys.modules)
import r1kernels
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@cache
def added_to_torch() -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(run.stdout)


def test_import_brings_no_other_package_than_torch() -> None:
    packages = {name.partition(".")[0] for name in added_to_torch()}
    assert packages - set(sys.stdlib_module_names) <= {"r1kernels", "torch"}


def test_import_brings_few_modules_of_torch_and_not_the_compiler() -> None:
    assert "torch._dynamo" not in added_to_torch()
    assert len([name for name in added_to_torch() if not name.startswith("r1kernels")]) < 8


def test_import_brings_the_ops_and_neither_triton_kernels_nor_models() -> None:
    ours = [name.split(".")[1:] for name in added_to_torch() if name.startswith("r1kernels.")]
    assert ["moe", "route"] in ours
    assert not [name for name in ours if "triton" in name[:-1] or name[0] in ("hf", "nn")]
