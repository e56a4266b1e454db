"""Guarded kernels: pinned anywhere, run unasked only where a record says right and faster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import prove
from benchmarks.status import source_hash
from r1kernels.core import device_records
from r1kernels.core.op import OPS, Op

GPU = "GPU one"
CASE = "M 4096, 4096 × 7168"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Op]:
    op = Op(
        "toy_guarded(Tensor x) -> Tensor",
        reference=lambda x: x + 1,
        fake=torch.empty_like,
    )
    op.implementation("cpp", guarded=True)(lambda x: x + 1)
    yield op
    del OPS["toy_guarded"]


@pytest.fixture(autouse=True)
def fresh_table() -> Iterator[None]:
    yield
    device_records.table.cache_clear()


def test_without_a_record_the_next_backend_runs_and_the_reason_is_said(guarded: Op) -> None:
    choice = guarded.select(torch.ones(2))
    assert choice.implementation == "torch"
    assert choice.reasons["cpp"].startswith("no record on cpu that it is right and faster")
    with guarded.using("cpp"):
        assert guarded.select(torch.ones(2)).implementation == "cpp"


def test_with_a_record_it_runs(
    guarded: Op, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "device_records.json"
    file.write_text(json.dumps({"toy_guarded": {"cpp": ["cpu"]}}))
    monkeypatch.setattr(device_records, "FILE", file)
    device_records.table.cache_clear()
    assert guarded.select(torch.ones(2)).implementation == "cpp"


def record(implementation: str, seconds: float | None, **changes: Any) -> dict[str, Any]:
    source = source_hash(OPS["fp8_gemm"], implementation)
    about = {"op": "fp8_gemm", "case": CASE, "kind": "cuda", "device": GPU, "source": source}
    return about | {"implementation": implementation, "seconds": seconds} | changes


@pytest.mark.parametrize(
    ("records", "devices"),
    [
        ([record("cuda", 1.0), record("triton", 2.0)], [GPU]),
        ([record("cuda", 2.0), record("triton", 1.0)], None),
        ([record("cuda", None), record("triton", 2.0)], None),
        ([record("cuda", 1.0, source="older"), record("triton", 2.0)], None),
        ([record("cuda", 1.0), record("triton", 0.5, device="GPU two")], [GPU]),
        ([record("cuda", 1.0), record("cuda", 3.0, case="b"), record("triton", 2.0, case="b")],
         None),
        ([], None),
    ],
    ids=("faster", "slower", "wrong", "older source", "another device", "one slower", "none"),
)  # fmt: skip
def test_a_record_counts_if_right_present_and_faster_everywhere(
    records: list[dict[str, Any]], devices: list[str] | None
) -> None:
    found = prove.prove(records)
    assert found == ({"fp8_gemm": {"cuda": devices}} if devices else {})


def test_the_shipped_table_is_what_the_records_say() -> None:
    from benchmarks import record as records

    assert prove.prove(records.load()) == json.loads(device_records.FILE.read_text())
