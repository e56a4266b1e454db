"""The compiled libraries: present, or absent with a reason; and the C++ instruction sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from r1kernels.core import native
from r1kernels.core.op import OPS
from tests import instruction_sets

needs_cpp = pytest.mark.skipif(native.load("cpp") is not None, reason=str(native.load("cpp")))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """native looks for its libraries in this folder, and has asked for none yet."""
    package = tmp_path / "tree/r1kernels"
    package.mkdir(parents=True)
    monkeypatch.setattr(native, "PACKAGE", package)
    monkeypatch.setattr(native, "_installed", lambda: None)
    monkeypatch.setattr(native, "load", native.load.__wrapped__)
    monkeypatch.setattr(native, "absent", native.absent.__wrapped__)
    return package


def test_the_reason_of_the_build_is_the_reason(elsewhere: Path) -> None:
    reasons = {
        "cpp": "PyTorch was not found when r1kernels was built",
        "cuda": "nvcc was not found when r1kernels was built",
    }
    (elsewhere / "_build.json").write_text(json.dumps(reasons))
    assert native.load("cpp") == (
        f"{reasons['cpp']} (install torch>=2.11, then: {native.REINSTALL})"
    )
    assert native.load("cuda") == f"{reasons['cuda']} (install nvcc, then: {native.REINSTALL})"
    assert "--no-build-isolation" in native.REINSTALL


def test_a_source_tree_without_kernels_says_so(elsewhere: Path) -> None:
    (elsewhere.parent / "setup.py").touch()
    reason = native.load("cpp")
    assert f"not built in the source tree {elsewhere.parent}" in str(reason)
    assert "pip install --no-build-isolation -e ." in str(reason)


def test_a_source_tree_beside_an_installed_package_names_both(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site/r1kernels"
    site.mkdir(parents=True)
    (site / "_cpp.so").touch()
    monkeypatch.setattr(native, "_installed", lambda: site)
    reason = native.load("cpp")
    assert f"this is the source tree {elsewhere.parent}, where no kernels are built" in str(reason)
    assert f"the installed r1kernels in {site.parent} has them" in str(reason)


def test_a_package_that_lost_its_library_is_a_reason(elsewhere: Path) -> None:
    reason = native.load("cpp")
    assert reason == (
        f"_cpp.so is missing from {elsewhere} (install torch>=2.11, then: {native.REINSTALL})"
    )


def test_a_library_that_does_not_load_is_a_reason(elsewhere: Path) -> None:
    (elsewhere / "_cpp.so").write_text("not a library")
    reason = native.load("cpp")
    assert reason is not None
    assert reason.startswith(f"_cpp.so does not load beside torch {torch.__version__}: ")
    assert native.able("cpp", "linear_logprob", ()) == reason


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_cpp_library_is_there_where_a_compiler_is() -> None:
    assert native.load("cpp") is None


@needs_cpp
def test_a_kernel_that_csrc_lacks_is_a_reason() -> None:
    assert native.absent("cpp", "nonsense") == "csrc has no cpp kernel of nonsense"


@needs_cpp
def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = native.kernel("cpp", "logprob")
    monkeypatch.setattr(native, "kernel", lambda backend, name: other)
    with pytest.raises(RuntimeError, match=r"_cpp\.so is not of this version.*reinstall"):
        native.absent.__wrapped__("cpp", "policy_loss")


@needs_cpp
@pytest.mark.parametrize("name", OPS)
def test_a_kernel_has_the_schema_of_its_op(name: str) -> None:
    if native.absent("cpp", name) is not None:
        pytest.skip(f"no C++ kernel of {name}")

    def types(schema: torch.FunctionSchema) -> tuple[list[str], list[str]]:
        return (
            [f"{arg.type} {arg.name}" for arg in schema.arguments],
            [str(ret.type) for ret in schema.returns],
        )

    assert types(native.kernel("cpp", name)._schema) == types(OPS[name].overload._schema)


@needs_cpp
def test_dtypes_and_devices_that_a_kernel_cannot_take_are_reasons() -> None:
    name = "linear_logprob"
    assert native.able("cpp", name, (torch.ones(1), None, 3)) is True
    assert native.able("cpp", name, (torch.ones(1).double(),)) == (
        "takes float32 and bfloat16, got float64"
    )
    assert native.able("cpp", name, (torch.ones(1, device="meta"),)) == (
        "takes cpu tensors, got one on meta"
    )


@needs_cpp
def test_the_instruction_set_can_be_lowered_and_restored() -> None:
    best = torch.ops.r1_cpp.isa()
    assert best in instruction_sets.BUILT
    torch.ops.r1_cpp.limit_isa("scalar")
    assert torch.ops.r1_cpp.isa() == "scalar"
    torch.ops.r1_cpp.limit_isa("")
    assert torch.ops.r1_cpp.isa() == best


@needs_cpp
def test_an_unknown_instruction_set_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(RuntimeError, match="avx512bf16"):
        torch.ops.r1_cpp.limit_isa("mmx")
