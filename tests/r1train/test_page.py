"""The page of a run: what it says, that it needs nothing else, and that a phone can show it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from r1train.cli import main
from r1train.config.schema import ConfigError
from r1train.report import stage_plots
from r1train.report.findings import RULE
from r1train.report.page import part, write_report
from r1train.report.records import StageRecords, study
from r1train.report.shares import is_share
from r1train.stages.search import METHODS

HOSTILE = "<script>alert(1)</script></pre><img src=x onerror=alert(1)>\x1b[2J" + "w" * 5000
BROWSERS = [path for name in ("chromium", "google-chrome") if (path := shutil.which(name))]


def written(folder: Path, seed: int) -> None:
    """The records of a run of three stages, the last of which has begun."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f"seed = {seed}\n")
    stages = [("base", "sft"), ("zero", "rl"), ("keep", "rejection"), ("late", "rl")]
    plan = [{"name": name, "inputs": {"kind": kind}} for name, kind in stages]
    (folder / "plan.json").write_text(json.dumps(plan))
    for name, _ in stages[:3]:
        (folder / name).mkdir()
        (folder / name / "artifact.json").write_text(json.dumps({"seconds": 61.0 + seed}))
    figures = {"eval/pass@1": 0.25, "eval/cons@4": 0.5, "eval/format": 0.9, "eval/mean_length": 9.5}
    for name, loss in (("base", "loss"), ("zero", "rewards/accuracy")):
        lines = [{"step": step, "stage": name, loss: 1 / step} for step in range(1, 9)]
        lines.append({"step": 8, "stage": name, **figures, "eval/pass@1_ci": [0.1, 0.4]})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name / "metrics.jsonl").write_text(text + '{"torn')
        samples = [
            {"step": 8, "stage": name, "question": "What is 1 + 1?", "reference": "2",
             "completion": said, "finished": False, "rewards": {"accuracy": 1.0, "none": None}}
            for said in (HOSTILE,)
        ]  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in samples)
        (folder / name / "samples.jsonl").write_text(text)
    table = {"prompts": 64, "dropped": {"accuracy": 12}, "accuracy": 0.81}
    (folder / "keep" / "table.json").write_text(json.dumps(table))
    (folder / "summary.json").write_text(json.dumps({"seconds": 200.0, "warnings": ["a <b> c"]}))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """The folder of two seeds with a finding, and its page."""
    folder = tmp_path_factory.mktemp("study") / "r1-mini"
    for seed in (0, 1):
        written(folder / f"seed-{seed}", seed)
    (folder / "config.toml").write_text("seeds = [0, 1]\n")
    finding = {
        "title": "It learns & lasts", "paper": "15.6 → 77.9", "left": "zero: pass@1",
        "right": "base: pass@1", "scale": "share", "values": [[0.9, 0.2], [0.8, 0.2]], "seeds": 3,
        "difference": 0.65, "interval": [0.1, 1.2], "verdict": "reproduced",
    }  # fmt: skip
    summary = {"seconds": 3700.0, "findings": [finding]}
    (folder / "summary.json").write_text(json.dumps(summary))
    files = write_report([folder], folder / "report.html")
    return folder, files, (folder / "report.html").read_text()


def test_the_page_says_what_the_records_say(seeds):
    _, _, page = seeds
    for text in (
        "2 seeds", "1 h 01 min", "It learns &amp; lasts", "reproduced", "15.6 → 77.9",
        "2 of 3 seeds: +65.0 %", "by seed: 90.0 % / 20.0 %, 80.0 % / 20.0 %",
        "25.0 %", "cons@4", "What is 1 + 1?", "accuracy 1", "none –", "cut off", "81.0 %",
        "dropped/<wbr>accuracy", "1 min 02 s", "a &lt;b&gt; c", RULE, "seeds = [0, 1]",
    ):  # fmt: skip
        assert text in page, text
    assert "<strong>keep</strong>" not in page  # it has no held-out figures
    assert "4 stages" not in page  # the last has not begun


def test_shares_are_in_per_cent_and_other_figures_are_numbers(tmp_path):
    written(tmp_path / "run", 0)
    table = {"majority": 0.995, "majority/n=4": 0.5, "pass@1/tokens": 2249.6, "greedy/tokens": 22.5}
    table |= {"greedy/judged_tokens": 0.0, "format_errors": 1.5}
    (tmp_path / "run" / "keep" / "table.json").write_text(json.dumps(table))
    ((_, rows),) = part(study(tmp_path / "run")).tables
    assert [cell.text for _, cell in rows] == ["99.5 %", "50.0 %", "2,250", "22.5", "0", "1.5"]
    assert all(is_share(name) and not is_share(f"{name}/tokens") for name in METHODS)


@pytest.mark.parametrize(
    ("kind", "title"),
    [("rl", "KL to the reference, nats"), ("on_policy_distill", "KL to the teacher, nats")],
)
def test_the_divergence_says_from_what(tmp_path, kind, title):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "stage": "a", "kl": 0.5}\n')
    drawing = stage_plots.curves("a", [StageRecords("a", kind, tmp_path)])
    assert drawing is not None
    assert title in drawing.svg


def test_figures_that_few_stages_have_come_last(tmp_path):
    folder = tmp_path / "run"
    written(folder, 0)
    for name, k in (("base", 16), ("zero", 8), ("late", 8)):
        figures = {f"eval/cons@{k}": 1.0, "eval/format": 1.0, "eval/pass@1": 0.5}
        if name == "base":
            figures = {"eval/rewards/quality": 0.5, **figures}
        (folder / name).mkdir(exist_ok=True)
        line = {"step": 1, "stage": name, **figures}
        (folder / name / "metrics.jsonl").write_text(json.dumps(line))
    assert part(study(folder)).figures == [
        *("cons@8", "format", "pass@1"),
        *("rewards/quality", "cons@16"),
    ]


def test_curves_are_seen(tmp_path, monkeypatch):
    """One step has a marker, and no legend lies on a panel."""
    monkeypatch.setattr(stage_plots, "_drawn", lambda figure, *_: figure)
    line = {"step": 1, "stage": "a", "rewards/accuracy": 0.5, "rewards/format": 0.25}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line))
    figure = stage_plots.curves("a", [StageRecords("a", "rl", tmp_path)])
    assert [line.get_marker() for line in figure.axes[0].get_lines()] == ["o", "o"]
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert box.x1 <= figure.bbox.x1
    plt.close(figure)


def test_hostile_text_stays_text(seeds):
    _, _, page = seeds
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page
    assert "w" * 2000 not in page


def test_the_page_needs_nothing_else(seeds):
    _, _, page = seeds
    assert re.findall(r'(?:src|href)="(?!#)([^"]*)"', page) == []
    assert not re.search(r"url\((?!#)", page)
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"'<> ]+", page)) <= namespaces


def test_figures_are_there_as_png(seeds):
    _, files, page = seeds
    names = [path.name for path in files]
    assert names == ["report.html", "heldout.png", "stage-base.png", "stage-zero.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files[1:])
    assert page.count("<svg") == 3


def test_several_runs_are_on_one_page(tmp_path, seeds):
    written(tmp_path / "one", 0)
    files = write_report([tmp_path / "one", seeds[0]], tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    assert page.count("<h1>") == 2
    assert "one-heldout.png" in [path.name for path in files]


def test_a_page_of_several_runs_leaves_those_of_each(tmp_path, monkeypatch):
    for name in ("one", "two"):
        written(tmp_path / name, 0)
    monkeypatch.chdir(tmp_path / "one")
    assert main(["report", "."]) == main(["report", ".", "../two"]) == 0
    assert (tmp_path / "one" / "report.html").read_text().count("<h1>") == 1
    assert (tmp_path / "one+two" / "report.html").read_text().count("<h1>") == 2
    assert (tmp_path / "one+two" / "figures" / "two-heldout.png").exists()


def test_runs_of_one_name_keep_their_figures_apart(tmp_path):
    for folder in ("left", "right"):
        written(tmp_path / folder / "one", 0)
    both = [tmp_path / folder / "one" for folder in ("left", "right")]
    files = write_report(both, tmp_path / "both.html")
    assert len({*files}) == len(files) == 7
    assert "one-2-heldout.png" in [path.name for path in files]


def test_what_is_no_figure_is_a_dash_or_left_out(tmp_path):
    """JSON of others may have NaN, infinities and texts where we write numbers."""
    written(tmp_path / "run", 0)
    zero = tmp_path / "run" / "zero"
    steps = ['{"step": 1, "loss": NaN}', '{"step": 2, "loss": "x", "entropy": Infinity}']
    last = '{"step": 2, "eval/format": 0.5, "eval/pass@1": NaN, "eval/mean_length": 1e999}'
    (zero / "metrics.jsonl").write_text("\n".join([*steps, last]))
    (zero / "artifact.json").write_text('{"seconds": NaN}')
    text = "</script>\x1b[2J" + "w" * 1_000_000
    sample = {"question": text, "reference": text, "completion": text, "rewards": {"a": 1e999}}
    (zero / "samples.jsonl").write_text(json.dumps(sample))
    summary = {"seconds": 1e999, "warnings": [text]}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    files = write_report([tmp_path / "run"], tmp_path / "report.html")
    page = files[0].read_text()
    assert len(page) < 100_000
    assert "stage-zero.png" not in [path.name for path in files]
    for shown in ("nan", "inf<", "inf ", "\x1b", "</script>"):
        assert shown not in page.lower(), shown


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    (tmp_path / "config.toml").write_text("seed = 0\n")
    (tmp_path / "plan.json").write_text("[]")
    assert write_report([tmp_path], tmp_path / "report.html") == [tmp_path / "report.html"]


@pytest.mark.parametrize(("interrupted", "how"), [(True, "broken off"), (False, "a stage failed")])
def test_a_run_that_is_not_finished_says_so(tmp_path, interrupted, how):
    (tmp_path / "config.toml").write_text("seed = 0\n")
    (tmp_path / "plan.json").write_text("[]")
    summary = {"interrupted": interrupted, "stopped_by": "an error"}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    write_report([tmp_path], tmp_path / "report.html")
    assert f">{how}</span>" in (tmp_path / "report.html").read_text()


def test_a_folder_of_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match="is no run folder"):
        study(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.skipif(not BROWSERS, reason="needs a browser: install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(seeds, tmp_path, width):
    """In a frame of that width: the page is no wider, and its text is of a size to be read."""
    frame = f"""<iframe width="{width}" height="800" src="{seeds[0] / "report.html"}"></iframe>
    <script>document.querySelector("iframe").onload = (event) => {{
      const page = event.target.contentDocument;
      const size = getComputedStyle(page.querySelector("pre")).fontSize;
      const drawn = page.querySelector("svg").getBoundingClientRect().width;
      const sections = page.querySelectorAll("section").length;
      document.title = [page.documentElement.scrollWidth, sections, size, drawn].join(" ");
    }};</script>"""
    path = tmp_path / "frame.html"
    path.write_text(frame)
    command = [
        *(
            BROWSERS[0],
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
        ),
        *(f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=5000", "--dump-dom"),
        path.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"<title>([\d.]+) (\d+) ([\d.]+)px ([\d.]+)</title>", shown)
    assert found is not None, shown[-500:]
    widest, sections, size, drawn = map(float, found.groups())
    assert widest <= width
    assert sections == 7
    assert size >= 12
    assert drawn > 300
