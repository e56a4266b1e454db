"""The compiled libraries: present, or absent with a reason; and the C++ instruction sets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from r1kernels import native
from r1kernels.op import OPS
from tests import instruction_sets

needs_cpp = pytest.mark.skipif(native.load("cpp") is not None, reason=str(native.load("cpp")))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """native looks for its libraries in this folder, and has asked for none yet."""
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    monkeypatch.setattr(native, "load", native.load.__wrapped__)
    monkeypatch.setattr(native, "absent", native.absent.__wrapped__)
    return tmp_path


def test_a_library_that_was_not_built_is_a_reason(elsewhere: Path) -> None:
    assert native.load("cpp") == (
        "_cpp.so was not built (install a C++ compiler, then reinstall r1kernels)"
    )
    assert "nvcc" in str(native.load("cuda"))


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
