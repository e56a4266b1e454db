"""The benchmark loop on a toy op: no speed is asserted, only what is said about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import head, ops, record
from benchmarks.peers import peers
from benchmarks.table import table
from r1kernels.op import OPS, PREFERENCE, Case, Op

NAME = "toy_double"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Op]:
    """An op with one right and one wrong backend, and no peer but eager PyTorch."""
    lib = torch.library.Library("r1kernels", "FRAGMENT")
    monkeypatch.setattr("r1kernels.op._LIB", lib)
    monkeypatch.setitem(PREFERENCE, "cpu", ("right", "wrong"))
    op = Op(
        f"{NAME}(Tensor x) -> Tensor",
        reference=lambda x: x * 2,
        fake=torch.empty_like,
        cases=[Case("long", lambda device: (torch.ones(4096),), bytes=2 * 4 * 4096, bench=True)],
    )
    op.backend("right")(lambda x: x + x)
    op.backend("wrong")(lambda x: x * 2.1)
    monkeypatch.setattr(ops, "peers", lambda op: {"eager": op.backends["torch"].run})
    yield op
    del OPS[NAME]
    lib._destroy()


def test_a_wrong_result_prints_no_speed(toy: Op, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row.implementation: row for row in ops.bench(toy, "cpu", quick=True)}
    assert list(rows) == ["right", "wrong", "eager"]
    assert rows["right"].seconds is not None
    assert rows["right"].roofline is not None
    assert rows["eager"].ratio == 1.0
    assert rows["wrong"].seconds is None
    assert rows["wrong"].gbps is None
    printed = capsys.readouterr().out
    assert "toy_double, wrong, case 'long', output 0: max error 0.1 against" in printed
    assert max(map(len, printed.splitlines()[:6])) <= 100


def test_a_peer_that_fails_costs_only_its_own_row(
    toy: Op, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(ops, "peers", lambda op: {"compile": broken})
    rows = {row.implementation: row for row in ops.bench(toy, "cpu", quick=True)}
    assert rows["compile"].seconds is None
    assert rows["right"].seconds is not None
    assert rows["right"].ratio is None
    assert "compile: RuntimeError: no compiler" in capsys.readouterr().out


def test_records_replace_those_of_the_same_op_case_and_implementation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    row = record.Row("op", "case", "cpp", 1.0, None, None, None, None, 0.0)
    record.save([row, record.Row("op", "case", "eager", 3.0, None, None, None, None, 0.0)], "cpu")
    record.save([record.Row("op", "case", "cpp", 2.0, None, None, None, None, 0.0)], "cpu")
    assert [(r["implementation"], r["seconds"]) for r in record.load()] == [
        ("cpp", 2.0),
        ("eager", 3.0),
    ]
    assert {"device", "torch", "triton", "commit", "date", "source"} <= set(record.load()[0])


def test_status_lists_kernels_without_a_record_of_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    assert "linear_logprob × cpp: no record" in record.status()
    op = OPS["linear_logprob"]
    for source, line in (
        ("0" * 12, "linear_logprob × cpp: older source"),
        (record.source_hash(op, "cpp"), None),
    ):
        args = (op.name, "lm_head", "cpp", 1.0, None, None, None, None, 0.0)
        record.save([record.Row(*args, source=source)], "cpu")
        lines = [text for text in record.status() if text.startswith("linear_logprob × cpp")]
        assert lines == ([line] if line else [])


def test_every_large_case_says_how_much_it_moves() -> None:
    large = [case for op in OPS.values() for case in op.cases if case.bench]
    assert large
    assert all(case.bytes > 0 for case in large)


@pytest.mark.parametrize("name", ["linear_logprob", "logprob"])
def test_trl_computes_what_the_op_computes(name: str) -> None:
    pytest.importorskip("trl")
    op = OPS[name]
    args = op.cases[0].make("cpu")
    got = peers(op)["trl"](*args)
    expected = op.backends["torch"].run(*args)
    torch.testing.assert_close(got[0], expected[0])


@pytest.mark.parametrize("name", [name for name in head.RUN if name != "compile"])
def test_every_implementation_of_the_headline_does_the_same_task(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "trl":
        pytest.importorskip("trl")
    monkeypatch.setattr(head, "V", 300)
    scenario = head.Scenario("small", 256, active=0.5)
    exact = head.step("eager", scenario.make("cpu", torch.float32))()
    assert head.error(head.step(name, scenario.make("cpu"))(), exact) < 2e-2


def test_a_table_is_aligned_markdown() -> None:
    assert table(("a", "b", "time"), [("x", "long", "1")]) == (
        "| a | b    | time |\n| - | ---- | ---: |\n| x | long |    1 |"
    )
