"""The benchmarks on toy ops and toy sizes: no speed is asserted, only what is said about it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import (
    distill_tasks,
    fp8_tasks,
    head,
    moe_tasks,
    ops,
    peers,
    plot,
    record,
    scaling,
    status,
    whole,
)
from benchmarks.peers import adapt
from benchmarks.peers.adapt import Peer, one_temperature
from benchmarks.record import Row
from benchmarks.table import show, table
from benchmarks.tasks import KINDS, Scenario
from r1kernels.core.op import OPS, PREFERENCE, Case, Op
from tests.benchmarking import each_implementation, row

NAME = "toy_double"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Op]:
    """An op with one right and one wrong backend, and no peer but eager PyTorch."""
    lib = torch.library.Library("r1kernels", "FRAGMENT")
    monkeypatch.setattr("r1kernels.core.op._LIB", lib)
    monkeypatch.setitem(PREFERENCE, "cpu", ("right", "wrong"))
    cases = [
        Case("long", lambda device: (torch.ones(4096),), bytes=2 * 4 * 4096, bench=True),
        Case("for a GPU", lambda device: 1 / 0, bench="cuda"),
    ]
    op = Op(
        f"{NAME}(Tensor x) -> Tensor",
        reference=lambda x: x * 2,
        fake=torch.empty_like,
        cases=cases,
    )
    op.implementation("right")(lambda x: x + x)
    op.implementation("wrong")(lambda x: x * 2.1)
    monkeypatch.setattr(
        ops.peers, "for_op", lambda op, device: {"eager": op.implementations["torch"].run}
    )
    yield op
    del OPS[NAME]
    lib._destroy()


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    return tmp_path


def test_a_wrong_result_prints_no_speed(toy: Op, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row.implementation: row for row in chain(*ops.bench(toy, "cpu", quick=True))}
    assert list(rows) == ["right", "wrong", "eager"]
    assert rows["right"].seconds is not None
    assert rows["right"].roofline is not None
    assert rows["eager"].ratio == 1.0
    assert rows["wrong"].seconds is None
    assert rows["wrong"].gbps is None
    printed = capsys.readouterr().out
    assert "toy_double, wrong, case 'long', output 0: max error 0.1 against" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_a_peer_that_gives_something_else_has_no_speed(
    toy: Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(x: torch.Tensor) -> torch.Tensor:
        return x[:-1] * 2

    monkeypatch.setattr(ops.peers, "for_op", lambda op, device: {"other": other})
    rows = {row.implementation: row for row in chain(*ops.bench(toy, "cpu", quick=True))}
    assert rows["other"].seconds is None
    assert rows["right"].ratio is None


def test_a_peer_that_fails_costs_only_its_own_row(
    toy: Op, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(ops.peers, "for_op", lambda op, device: {"compile": broken})
    rows = {row.implementation: row for row in chain(*ops.bench(toy, "cpu", quick=True))}
    assert rows["compile"].seconds is None
    assert rows["right"].seconds is not None
    assert rows["right"].ratio is None
    assert "compile: RuntimeError: no compiler" in capsys.readouterr().out


def test_a_case_that_cannot_be_measured_costs_only_itself(
    toy: Op, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(ops, "bench_case", fail)
    monkeypatch.setattr(whole, "step", fail)
    assert list(chain(*ops.bench(toy, "cpu", quick=True))) == []
    assert "OutOfMemoryError: no memory" in capsys.readouterr().out
    measured = whole.measure(small("grpo"), "cpu", True, rounds=(1, 1), seconds=0.1)
    assert measured == ([], ["eager: OutOfMemoryError: no memory"])


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda got: (got[0], got[1] * 1.1), "r1kernels: error 0.1, allowed"),
        (lambda got: (got[0], got[1].fill_(torch.nan)), "r1kernels: error inf, allowed"),
    ],
)
def test_a_wrong_gradient_of_the_headline_has_no_speed(
    spoil: Any, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_step = whole.step

    def step(name: str, *args: Any) -> Any:
        call = make_step(name, *args)
        return (lambda: spoil(call())) if name == whole.WE else call

    monkeypatch.setattr(whole, "step", step)
    scenario = Scenario("small", 64, 16, 50, frozen=True, peers=("eager",))
    rows, problems = whole.measure(scenario, "cpu", quick=True, rounds=(1, 1), seconds=0)
    assert [row.seconds is None for row in rows] == [True, False]
    assert [problem.startswith(line) for problem in problems] == [True]


def test_records_replace_those_of_the_same_op_case_and_implementation(results: Path) -> None:
    record.save([row("cpp", 1.0), row("eager", 3.0)], "cpu")
    record.save([row("cpp", 2.0)], "cpu")
    assert [(r["implementation"], r["seconds"]) for r in record.load()] == [
        ("cpp", 2.0),
        ("eager", 3.0),
    ]
    fields = {"kind", "device", "torch", "triton", "commit", "date", "source"}
    assert fields <= set(record.load()[0])


def test_status_asks_for_a_record_of_the_present_source(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = OPS["linear_logprob"]
    case = next(case for case in op.cases if case.timed_on("cpu")).name
    present = status.source_hash(op, "cpp")
    monkeypatch.setattr(record, "device_name", lambda device: device)
    for device, seconds, source, expected in (
        ("cuda", 1.0, present, "no record"),  # not what this kernel runs on
        ("cpu", 1.0, "0" * 12, "older source"),
        ("cpu", None, present, "wrong result"),
        ("cpu", 1.0, present, None),
    ):
        new = row("cpp", seconds, op=op.name, case=case, source=source)
        record.save([new], device)
        lines = [line for line in status.lines() if line.startswith("linear_logprob × cpp")]
        assert lines == ([f"linear_logprob × cpp: {expected}"] if expected else [])


def test_status_is_one_narrow_line_for_each_kernel(results: Path) -> None:
    pairs = [line.split(":")[0] for line in status.lines()]
    assert "logprob × cuda" in pairs
    assert len(pairs) == len(set(pairs))
    assert max(map(len, status.lines())) <= 80


@pytest.mark.parametrize(
    ("op", "backend", "part", "no_part"),
    [
        ("logprob", "cuda", "r1kernels/head/head.py", "csrc/cpu/head/logprob.cpp"),
        ("linear_logprob", "cpp", "csrc/cpu/common/gemm.h", "csrc/cpu/policy/policy_loss.cpp"),
        ("policy_loss", "cpp", "r1kernels/policy/surrogates.py", "csrc/cpu/common/gemm.h"),
        ("linear_logprob", "triton", "r1kernels/triton/launch.json", "r1kernels/core/op.py"),
    ],
)
def test_a_kernels_source_is_what_it_includes_and_imports(
    op: str, backend: str, part: str, no_part: str
) -> None:
    found = set(map(str, status.sources(OPS[op], backend)))
    assert part in found
    assert no_part not in found


def test_every_large_case_says_how_much_it_moves() -> None:
    large = [case for op in OPS.values() for case in op.cases if case.bench]
    assert large
    assert all(case.bytes > 0 for case in large)


@pytest.mark.parametrize("name", ["linear_logprob", "logprob"])
def test_trl_computes_what_the_op_computes(name: str) -> None:
    pytest.importorskip("trl")
    op = OPS[name]
    args = op.cases[0].make("cpu")
    got = peers.for_op(op, "cpu")["trl"](*args)
    expected = op.implementations["torch"].run(*args)
    torch.testing.assert_close(got[0], expected[0])


def test_a_peer_says_that_it_takes_one_temperature_only() -> None:
    assert one_temperature(None) == 1.0
    with pytest.raises(ValueError, match="takes one temperature"):
        one_temperature(torch.ones(3))


def small(kind: str) -> Scenario:
    return Scenario("small", 256, 96, 300, torch.float32, kind, active=0.5)


def small_moe(kind: str) -> moe_tasks.Scenario:
    return moe_tasks.Scenario("small", 40, 32, 4, 48, 24, kind, torch.float32)


SMALL = [
    *map(small, KINDS),
    *map(small_moe, moe_tasks.OURS),
    distill_tasks.Scenario("small", 200, 48, 32, 300, torch.float32),
]


@each_implementation(SMALL)
def test_every_implementation_does_the_same_task(name: str, scenario: whole.Scenario) -> None:
    exact = whole.step(scenario.yardstick, scenario, scenario.make("cpu", torch.float64))()
    with torch.compiler.set_stance("force_eager"):  # the formulas; compiling takes long
        got = whole.step(name, scenario, scenario.make("cpu"))()
    assert whole.error(got, exact) < 1e-5


@pytest.mark.parametrize("name", ["r1kernels", "bf16", "eager", "torch._scaled_mm"])
@pytest.mark.parametrize("forward", [False, True])
def test_every_layer_in_fp8_does_the_same_task(name: str, forward: bool) -> None:
    if not forward and name == "torch._scaled_mm":
        pytest.skip("has no gradient")
    scenario = fp8_tasks.Scenario("small", 128, 64, 256, forward)
    exact = whole.step("eager", scenario, scenario.make("cpu", scenario.exact_dtype))()
    got = whole.step(name, scenario, scenario.make("cpu"))()
    assert whole.error(got, exact) < (1e-2 if name == "bf16" else 6e-2)  # three bits of mantissa


def test_an_error_against_a_truth_of_zero_is_absolute() -> None:
    assert (
        whole.error((torch.tensor([1e-7]),), (torch.zeros(1, dtype=torch.float64),)) < whole.EXACT
    )
    assert whole.error((torch.ones(1),), (torch.zeros(1, dtype=torch.float64),)) == 1.0


def test_where_the_yardstick_has_no_error_a_rounding_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eager PyTorch may round as its own truth does, and nobody can do better than that."""
    monkeypatch.setattr(whole, "implementations", lambda scenario, device: ["r1kernels", "eager"])
    errors = {"r1kernels": 7e-8, "eager": 0.0}
    monkeypatch.setattr(whole, "judge", lambda name, call, exact, problems: errors[name])
    measured = whole.measure(small("logprob"), "cpu", True, (1, 1), 0.0)
    assert [row.seconds is not None for row in measured.rows] == [True, True]
    errors["r1kernels"] = 1e-4
    assert whole.measure(small("logprob"), "cpu", True, (1, 1), 0.0).problems == [
        "r1kernels: error 0.0001, allowed 1e-06"
    ]


def test_a_missing_peer_is_absent_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    task = {"grpo": lambda task: task.old_logprob.sum()}
    there = Peer("there", task)
    monkeypatch.setattr(
        peers, "PEERS", (there, Peer("gone", task, needs=("no_such_package",)),
                         Peer("gpu", task, gpu_only=True)),
    )  # fmt: skip
    assert list(peers.for_task("grpo", "cpu")) == ["there"]
    assert peers.missing("cpu").splitlines() == [
        "no gone: package no_such_package is not installed",
        "no gpu: runs on CUDA only",
    ]


def test_a_peer_may_need_more_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    more = Peer("more", needs_on_hopper=("no_such_package",))
    only = Peer("only", hopper_only=True)
    monkeypatch.setattr(adapt, "on_hopper", lambda device: False)
    assert (more.missing("cuda"), only.missing("cuda")) == (None, "runs on Hopper only")
    monkeypatch.setattr(adapt, "on_hopper", lambda device: device == "cuda")
    assert more.missing("cuda") == "package no_such_package is not installed"
    assert (more.missing("cpu"), only.missing("cuda")) == (None, None)
    assert only.missing("cpu") == "runs on Hopper only"


def test_points_of_the_headline_are_many_and_include_odd_vocabularies() -> None:
    points = {(s.rows, s.width, s.columns, s.dtype) for s in head.SCENARIOS["cpu"]}
    assert len(points) >= 6
    assert any(columns % 2 for _, _, columns, _ in points)
    for scenario in head.SCENARIOS["cpu"] + head.SCENARIOS["cuda"]:
        assert scenario.kind in KINDS
        assert scenario.flops or scenario.bytes


def scaling_rows() -> list[Row]:
    """Ours linear in T, a peer quadratic, which stops early."""
    return [
        row(name, t**power, op=whole.NAME["grpo"], case=f"{scaling.PREFIX}{t}", peak=t << 20,
            returned=1 << 20, shape=(t, 576, 49152))
        for name, power, steps in ((whole.WE, 1, (512, 1024, 2048)), ("eager", 2, (512, 1024)))
        for t in steps
    ]  # fmt: skip


def test_a_peer_that_is_too_slow_is_not_asked_for_more_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measure(scenario: Scenario, *_: Any, **__: Any) -> whole.Measured:
        assert scenario.peers is not None
        names = (whole.WE, *scenario.peers)
        slow = dict.fromkeys(("eager", "chunked"), 100.0)
        return whole.Measured([row(name, slow.get(name, 0.1)) for name in names], [])

    monkeypatch.setattr(whole, "measure", measure)
    first, second = scaling.bench("cpu", quick=True)
    gone = {row.implementation for row in first} - {row.implementation for row in second}
    assert gone == {"chunked"}  # eager stays: the others' exactness is judged by it


def test_growth_with_the_number_of_rows_is_fitted() -> None:
    lines = scaling.report(scaling_rows()).splitlines()
    exponents = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in lines[2:6]}
    assert exponents[whole.WE] == "1.00"
    assert exponents["eager"] == "2.00"
    assert max(map(len, lines)) <= 80


def test_the_plot_is_drawn_from_records_without_a_display(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    record.save(scaling_rows(), "cpu")
    files = plot.draw(record.load(), tmp_path)
    assert [file.name for file in files] == [
        f"head-time-memory-{record.slug(record.device_name('cpu'))}.png"
    ]
    assert on_white(files[0])


def test_each_device_has_a_drawing_of_its_own(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    record.save(scaling_rows(), "cpu")
    both = [{**line, "device": name} for line in record.load() for name in ("GPU One", "cpu 2")]
    names = [file.name for file in plot.draw(both, tmp_path)]
    assert names == ["head-time-memory-gpu-one.png", "head-time-memory-cpu-2.png"]


def on_white(image: Path) -> bool:
    """Whether a drawing reads on a dark page: its corner is white and nothing shows through."""
    from matplotlib import image as images

    pixels = images.imread(image)
    return bool((pixels[0, 0] == 1).all() and (pixels[..., 3:] == 1).all())


def test_nothing_to_draw_is_said(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit, match="benchmarks scaling"):
        plot.draw([], tmp_path)


def test_tuning_keeps_what_is_faster_and_stops() -> None:
    tune = pytest.importorskip("benchmarks.tune", exc_type=ImportError)
    entry = {tune.WIDTH: {"ROWS": 16, "num_stages": 3}}
    kept: list[dict[str, int]] = []

    def cost() -> float:  # least at 64 rows and 2 stages; 128 do not compile
        now = entry[tune.WIDTH]
        if now["ROWS"] > 64:
            return float("inf")
        return abs(now["ROWS"] - 64) + abs(now["num_stages"] - 2) + 1.0

    assert tune.descend(entry, cost, lambda: kept.append(entry[tune.WIDTH])) == (50.0, 1.0)
    assert entry[tune.WIDTH] == kept[-1] == {"ROWS": 64, "num_stages": 2}


def test_a_part_of_a_tile_never_has_more_columns_than_the_tile() -> None:
    pytest.importorskip("triton")
    from benchmarks.tune import neighbours

    found = list(neighbours({"COLUMNS": 64, "PART": 64}))
    assert found == [{"COLUMNS": 128, "PART": 64}, {"COLUMNS": 64, "PART": 32}]


def test_the_launch_table_is_written_as_it_is_read() -> None:
    tune = pytest.importorskip("benchmarks.tune", exc_type=ImportError)
    assert tune.formatted(tune.launch.table()) == tune.launch.TABLE.read_text()


def test_a_table_is_aligned_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert table(("a", "b", "time"), [("x", "long", "1")]) == (
        "| a |    b | time |\n| - | ---: | ---: |\n| x | long |    1 |"
    )
    show("title", [row("liger scaled", 12.3456, tflops=123.4, gbps=3350, roofline=1.23,
                       ratio=10.25, peak=12345 << 20)], ["a reason " * 30])  # fmt: skip
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
