"""Where FP8 layers are faster: what records say, by the size of a weight, on which processor."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from benchmarks import fp8_speed as benchmark
from benchmarks import record as records
from r1kernels.fp8 import speed as fp8_speed
from r1kernels.fp8.speed import Speed

GPU = "NVIDIA H100 80GB HBM3"


def weight(columns: int, depth: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(columns, depth, dtype=dtype, device="meta")


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8_speed.native, "processor", lambda device: GPU)


def measured(monkeypatch: pytest.MonkeyPatch, *speeds: Speed) -> None:
    monkeypatch.setattr(fp8_speed, "table", lambda: {GPU: {"bfloat16": list(speeds)}})


def test_the_shipped_table_is_what_the_records_say() -> None:
    assert benchmark.speeds(records.load()) == json.loads(fp8_speed.FILE.read_text())


def test_every_shipped_processor_has_an_answer_with_its_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for processor, by_dtype in fp8_speed.table().items():
        monkeypatch.setattr(fp8_speed.native, "processor", lambda device, p=processor: p)
        for speed in by_dtype["bfloat16"]:
            verdict = fp8_speed.of(weight(speed.columns, speed.depth))
            assert processor in verdict.reason
            assert " against " in verdict.reason
            assert verdict.faster == ("backward faster" in verdict.reason)


def test_the_largest_measured_weight_that_fits_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    small, wide = Speed(2112, 7168, 4096, 3e-3, 2e-3), Speed(4096, 7168, 4096, 4e-3, 5e-3)
    measured(monkeypatch, small, wide)
    assert fp8_speed.of(weight(4096, 7168)).faster
    assert fp8_speed.of(weight(9000, 9000)).faster
    verdict = fp8_speed.of(weight(4095, 7168))
    assert not verdict.faster
    assert verdict.reason == (
        f"forward and backward slower than in bfloat16 on {GPU}: 3 against 2 ms of "
        "4096 × 2112 × 7168"
    )
    assert fp8_speed.of(weight(2000, 7168)).reason == (
        f"no record of a weight as small as 2000 × 7168 against one in bfloat16 on {GPU}, the "
        "smallest is 2112 × 7168"
    )


def test_it_must_be_faster_at_every_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    many, few = Speed(4096, 7168, 4096, 4e-3, 5e-3), Speed(4096, 7168, 512, 3e-3, 2e-3)
    measured(monkeypatch, many, few)
    verdict = fp8_speed.of(weight(4096, 7168))
    assert not verdict.faster
    assert "512 × 4096 × 7168" in verdict.reason
    assert "4096 × 4096 × 7168" not in verdict.reason


def test_another_dtype_or_processor_has_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, Speed(8, 8, 8, 1e-3, 2e-3))
    said = f"no record of its speed against one in float32 on {GPU}"
    assert fp8_speed.of(weight(64, 64, torch.float32)) == (False, said)
    monkeypatch.setattr(fp8_speed.native, "processor", lambda device: "another")
    assert not fp8_speed.of(weight(64, 64)).faster


def record(name: str, seconds: float | None, **changes: Any) -> dict[str, Any]:
    about = {"op": "fp8_linear, layer", "case": "trained", "implementation": name, "kind": "cuda",
             "device": GPU, "shape": [4096, 7168, 2048], "seconds": seconds}  # fmt: skip
    return about | changes


def test_records_of_the_same_size_are_put_side_by_side() -> None:
    of_cpu = {"kind": "cpu", "device": "AMD EPYC × 2, avx2"}
    given = [
        record("r1kernels", 1e-3), record("bf16", 2e-3), record("eager", 9e-3),
        record("r1kernels", 3e-3, **of_cpu), record("bf16", 4e-3, **of_cpu),
        record("r1kernels", 5e-3, case="M = 1"), record("bf16", 6e-3, case="M = 1"),
        record("r1kernels", None, case="trained, b"), record("bf16", 1.0, case="trained, b"),
        record("bf16", 1.0, case="trained, c"),
    ]  # fmt: skip
    assert benchmark.speeds(given) == {
        GPU: {"bfloat16": [[7168, 2048, 4096, 1e-3, 2e-3]]},
        "avx2": {"bfloat16": [[7168, 2048, 4096, 3e-3, 4e-3]]},
    }
