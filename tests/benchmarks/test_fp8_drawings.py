"""The drawings of FP8: the roofline of its layers, and its runs beside others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import convergence, fp8_tasks, roofline


def record(name: str, tflops: float, gbps: float, share: float, **changes: Any) -> dict[str, Any]:
    about = {
        "op": roofline.TASK,
        "implementation": name,
        "seconds": 1.0,
        "device": "cpu",
    }
    return about | {"tflops": tflops, "gbps": gbps, "roofline": share} | changes


RECORDS = [record("r1kernels", 0.8, 1.0, 0.8), record("bf16", 0.01, 50.0, 0.5)]


def test_ceilings_are_read_from_the_shares_of_them() -> None:
    assert roofline.ceilings(RECORDS) == (pytest.approx(1.0), pytest.approx(100.0))


def test_it_is_drawn_of_each_device(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    other = record("bf16", 5.0, 5.0, 0.5, device="GPU 1")
    files = roofline.draw([*RECORDS, other], tmp_path)
    assert [file.name for file in files] == ["fp8-roofline-gpu-1.png", "fp8-roofline-cpu.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert roofline.draw([], tmp_path) == []


def test_a_layers_least_traffic_has_a_byte_for_each_weight() -> None:
    layer = fp8_tasks.Scenario("", 1, 64, 32)
    assert layer.bytes == 64 * 32 + 2 * (64 + 32)
    assert layer.flops == 2 * 64 * 32
    assert layer._replace(forward=False).flops == 3 * layer.flops


def test_runs_are_drawn_side_by_side(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("float32", "fp8"):
        (tmp_path / name).mkdir()
        rows = [
            {"stage": stage, "step": step, metric: 1.0 / step}
            for stage, metric, _ in convergence.PANELS
            for step in (1, 2)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folders = [tmp_path / "float32", tmp_path / "fp8"]
    assert convergence.curve(folders[0], "sft", "loss") == ([1, 2], [1.0, 0.5])
    assert convergence.draw(folders, tmp_path).read_bytes().startswith(b"\x89PNG")
