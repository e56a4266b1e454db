"""Several implementations of one backend: which one runs, is pinned, measured and recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import r1kernels
from benchmarks import ops, peers, prove, status
from r1kernels.__main__ import table
from r1kernels.core import device_records, native
from r1kernels.core.implementation import Implementation
from r1kernels.core.op import OPS, PREFERENCE, Case, Op

NAME = "toy_scale_of_variants"
ARGS = (torch.ones(2), 3.0)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Op]:
    """y = scale · x on the backend "fast": for few elements, for whole scales, and for the rest."""
    library = torch.library.Library("r1kernels", "FRAGMENT")
    monkeypatch.setattr("r1kernels.core.op._LIB", library)
    monkeypatch.setitem(PREFERENCE, "cpu", ("fast", "cpp"))
    op = Op(
        f"{NAME}(Tensor x, float scale) -> Tensor",
        reference=lambda x, scale: x * scale,
        fake=lambda x, scale: torch.empty_like(x),
        cases=[Case("long", lambda device: (torch.ones(4096), 2.0), bench=True)],
    )
    op.implementation("fast")(lambda x, scale: scale * x)
    op.implementation("fast", "few", when=lambda x, scale: x.numel() < 4 or "takes few elements")(
        lambda x, scale: x * scale
    )
    op.implementation("fast", "whole", when=lambda x, scale: scale % 1 == 0 or "takes whole ones")(
        lambda x, scale: x * int(scale)
    )
    yield op
    del OPS[NAME]
    library._destroy()


def test_variants_are_tried_in_their_order_and_before_the_plain_one(toy: Op) -> None:
    few, many = torch.ones(2), torch.ones(5)
    assert toy.named("fast") == ("fast:few", "fast:whole", "fast")
    assert toy.select(few, 3.0) == ("fast:few", {})
    assert toy.select(many, 3.0) == ("fast:whole", {"fast:few": "takes few elements"})
    assert toy.select(many, 0.5) == (
        "fast",
        {"fast:few": "takes few elements", "fast:whole": "takes whole ones"},
    )


def test_explain_names_the_variant_and_each_better_one(toy: Op) -> None:
    assert r1kernels.explain(toy, torch.ones(5), 3.0) == (
        f"{NAME}: fast:whole\n  not fast:few: takes few elements"
    )


def test_a_backend_is_pinned_with_its_variants_and_a_variant_alone(toy: Op) -> None:
    many = torch.ones(5)
    with toy.using("fast"):
        assert toy.select(many, 3.0).implementation == "fast:whole"
    with toy.using("fast:few"):
        assert toy.select(*ARGS).implementation == "fast:few"
        with pytest.raises(RuntimeError, match=r"pinned to backend 'fast:few'.*takes few elements"):
            toy(many, 3.0)
    with r1kernels.using("fast:whole"):
        assert toy.select(*ARGS).implementation == "fast:whole"


def test_only_pins_the_plain_one_without_its_variants(toy: Op) -> None:
    with toy.only("fast"):
        assert toy.select(*ARGS).implementation == "fast"
    with toy.only("fast:whole"):
        assert toy.select(*ARGS).implementation == "fast:whole"
    assert toy.select(*ARGS).implementation == "fast:few"


def test_a_variant_that_is_not_there_is_an_error_that_lists_them(toy: Op) -> None:
    with (
        pytest.raises(ValueError, match=r"unknown backend 'fast:fw'.*fast:few.*mean 'fast:few'"),
        toy.using("fast:fw"),
    ):
        pass


@pytest.mark.parametrize(
    ("arch", "able"), [("sm_90", True), ("sm_86", "is for sm_90 and sm_100, got sm_86")]
)
def test_a_variant_of_an_architecture_runs_there_alone(
    monkeypatch: pytest.MonkeyPatch, arch: str, able: bool | str
) -> None:
    one = Implementation(NAME, "cuda", "tiles", torch.mul, archs=("sm_90", "sm_100"))
    monkeypatch.setattr(native, "architecture", lambda device: arch)
    with FakeTensorMode():
        there = torch.empty(2, device="cuda")
    assert one.able(there, 3.0) == able
    assert one.able(torch.ones(2), 3.0) is True  # an interpreter's


def test_a_compiled_variant_is_found_under_its_own_name(toy: Op) -> None:
    if native.load("cpp") is not None:
        pytest.skip("there is no C++ library")
    toy.compiled("cpp", "absent")
    assert toy.implementations["cpp:absent"].able(*ARGS) == (
        f"csrc has no cpp kernel of {NAME}__absent"
    )
    library = torch.library.Library("r1_cpp", "FRAGMENT")
    library.define(f"{NAME}__doubled(Tensor x, float scale) -> Tensor")
    library.impl(f"{NAME}__doubled", lambda x, scale: x * (2 * scale), "CPU")
    toy.compiled("cpp", "doubled")
    try:
        with toy.using("cpp:doubled"):
            assert toy(*ARGS).tolist() == [6.0, 6.0]
    finally:
        native.kernel.cache_clear()
        native.absent.cache_clear()
        library._destroy()


def undeclared(registered: set[str]) -> set[str]:
    """Kernels of variants, as libraries name them, that no op would ever run."""
    declared = {
        native.kernel_name(op.name, one.variant)
        for op in OPS.values()
        for one in op.implementations.values()
    }
    return {name for name in registered if "__" in name} - declared


def test_every_variant_in_a_library_is_declared() -> None:
    loaded = [backend for backend in native.DEVICE if native.load(backend) is None]
    registered = {
        name.partition("::")[2].partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.partition("::")[0] in [f"r1_{backend}" for backend in loaded]
    }
    assert undeclared(registered) == set()
    assert undeclared(registered | {"logprob__odd"}) == {"logprob__odd"}


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    file = tmp_path / "device_records.json"
    file.write_text("{}")
    monkeypatch.setattr(device_records, "FILE", file)
    device_records.table.cache_clear()
    yield file
    device_records.table.cache_clear()


def test_a_guarded_variant_waits_for_a_record_of_its_own(toy: Op, records: Path) -> None:
    toy.implementation("fast", "few", guarded=True)(lambda x, scale: x * scale)
    choice = toy.select(*ARGS)
    assert choice.implementation == "fast:whole"
    assert choice.reasons["fast:few"].startswith("no record on cpu")
    with toy.using("fast"):  # does not ask for that variant
        assert toy.select(*ARGS).implementation == "fast:whole"
    with toy.using("fast:few"):
        assert toy.select(*ARGS).implementation == "fast:few"
    records.write_text(json.dumps({NAME: {"fast:few": ["cpu"]}}))
    device_records.table.cache_clear()
    assert toy.select(*ARGS).implementation == "fast:few"


@pytest.mark.parametrize(("plain", "devices"), [(2.0, ["GPU"]), (0.5, [])])
def test_a_variant_is_proved_against_the_plain_one_too(
    toy: Op, plain: float, devices: list[str]
) -> None:
    toy.implementation("fast", "few", guarded=True)(lambda x, scale: x * scale)
    about = {"op": NAME, "case": "long", "kind": "cpu", "device": "GPU", "source": ""}
    found = prove.prove(
        [
            about | {"implementation": "fast:few", "seconds": 1.0},
            about | {"implementation": "fast", "seconds": plain},
            about | {"implementation": "eager", "seconds": 0.1},
        ]
    )
    assert found.get(NAME, {}).get("fast:few", []) == devices


def test_each_variant_has_its_row_in_the_benchmarks(
    toy: Op, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "for_op", lambda op, device: {})
    (rows,) = ops.bench(toy, "cpu", quick=True)
    assert [row.implementation for row in rows] == ["fast:whole", "fast"]
    assert all(row.seconds is not None for row in rows)


def test_the_sources_of_a_variant_are_the_files_that_register_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "csrc" / "cuda" / "head"
    folder.mkdir(parents=True)
    (folder / "plain.cu").write_text('m.impl("logprob", f);')
    (folder / "ring.cu").write_text('#include "cuda/head/ring.h"\nm.impl("logprob__ring", f);')
    (folder / "ring.h").write_text("")
    monkeypatch.setattr(status, "ROOT", tmp_path)
    status._needs.cache_clear()
    found = {name: [path.name for path in status.sources(OPS["logprob"], name)] for name in NAMES}
    status._needs.cache_clear()
    assert found == {"cuda": ["plain.cu"], "cuda:ring": ["ring.cu", "ring.h"], "cuda:none": []}


NAMES = ("cuda", "cuda:ring", "cuda:none")


def test_the_table_has_a_line_for_each_variant(toy: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.implementation("cuda", "ring", archs=("sm_90",))(lambda x, scale: x * scale)
    lines = [line.split() for line in table().splitlines() if line]
    assert lines[[line[0] for line in lines].index(NAME) + 1][0] == "cuda:ring"
