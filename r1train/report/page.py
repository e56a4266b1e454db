"""One page that says all of a run or of several: it needs no other file, no network, no script."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from r1train.report.findings import RULE, by_seed
from r1train.report.records import Record, StageRecords, StudyRecords, number, study
from r1train.report.shares import is_share
from r1train.report.stage_plots import Drawing, drawings

QUESTIONS = 6
"""Of the samples that are shown."""
CHARACTERS = 1500
"""Of a completion that is shown."""
HIDDEN = ("errors", "timeouts", "problems", "verifiable", "completions_per_problem")


@dataclass(frozen=True)
class Cell:
    """A figure of a stage: its mean over the seeds, and where they lie."""

    text: str
    spread: str = ""


@dataclass(frozen=True)
class Answer:
    """A completion of a question by the model of a stage."""

    stage: str
    completion: str
    finished: bool
    rewards: list[tuple[str, str, bool]]
    """Name, value, and whether that is above 0."""


@dataclass(frozen=True)
class Part:
    """What the page says of one study."""

    study: StudyRecords
    figures: list[str]
    rows: list[tuple[str, str, list[Cell]]]
    """Held-out figures: name and kind of each stage, and its cells."""
    tables: list[tuple[str, list[tuple[str, Cell]]]]
    """Further figures of stages."""
    times: list[tuple[str, float, float]]
    """Stages, their mean seconds, and those as a share of the longest."""
    questions: list[tuple[str, str, list[Answer]]]
    drawings: list[Drawing]

    @property
    def findings(self) -> list[Record]:
        found: list[Record] = self.study.summary.get("findings", [])
        return found

    @property
    def warnings(self) -> list[str]:
        summaries = [run.summary for run in self.study.runs]
        return [_printable(text) for summary in summaries for text in summary.get("warnings", [])]


def page_of(folders: Sequence[Path]) -> Path:
    """Where the page of these runs belongs: in the folder of the only one, or in one of its own
    beside the first, since each run keeps its page."""
    if len(folders) == 1:
        return folders[0] / "report.html"
    names = "+".join(folder.resolve().name for folder in folders)
    short = os.fsdecode(os.fsencode(names)[:200])  # the name of a folder has 255 bytes at most
    return folders[0].resolve().parent / short / "report.html"


def write_report(folders: Sequence[Path], target: Path) -> list[Path]:
    """The page of these runs as `target`, and its figures as PNG beside it; returns what was
    written. Raises ConfigError where a folder is no run's."""
    parts = [part(study(folder)) for folder in folders]
    environment = Environment(
        loader=PackageLoader("r1train.report", "."),
        autoescape=True,  # completions are hostile text
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "signed": _signed, "duration": _duration}
    environment.filters["by_seed"] = by_seed
    page = environment.get_template("page.html").render(parts=parts, rule=RULE)
    target.parent.mkdir(exist_ok=True)
    target.write_text(page, encoding="utf-8", errors="replace")
    written = [target]
    images = target.with_name("figures")
    names = [each.study.name for each in parts]
    for place, each in enumerate(parts):
        again = names[:place].count(each.study.name)  # runs of two folders may have one name
        own = f"{each.study.name}-{again + 1}" if again else each.study.name
        prefix = f"{own}-" if len(parts) > 1 else ""
        for drawing in each.drawings:
            images.mkdir(exist_ok=True)
            written.append(images / f"{prefix}{drawing.name}.png")
            written[-1].write_bytes(drawing.png)
    return written


def part(found: StudyRecords) -> Part:
    """All that is said of one study."""
    names, rows = _rows(found)
    return Part(
        found, names, rows, _tables(found), _times(found), _questions(found), drawings(found)
    )


def _rows(found: StudyRecords) -> tuple[list[str], list[tuple[str, str, list[Cell]]]]:
    """The held-out figures, and of each stage that has any its cells."""
    last = {
        name: [stage.evaluations[-1] for stage in stages if stage.evaluations]
        for name, stages in found.stages.items()
    }
    has = {
        name: {
            key.removeprefix("eval/"): None
            for record in records
            for key, value in record.items()
            if key.startswith("eval/") and number(value) is not None
        }
        for name, records in last.items()
    }
    stages_with = Counter(name for names in has.values() for name in names)
    kinds = list(dict.fromkeys(_kind(name) for name in stages_with))
    shown = [name for name in stages_with if name not in HIDDEN and "=" not in name]
    # As evaluations have them, but what few stages have comes last.
    shown.sort(key=lambda name: (2 * stages_with[name] < len(has), kinds.index(_kind(name))))
    rows = [
        (name, found.stages[name][0].kind, [_cell(records, f"eval/{key}") for key in shown])
        for name, records in last.items()
        if records
    ]
    return shown, rows


def _kind(name: str) -> str:
    """What figures have in common that differ in a number, as cons@8 and cons@16."""
    return re.sub(r"\d+", "", name)


def _cell(records: Sequence[Mapping[str, Any]], key: str) -> Cell:
    values = [value for record in records if (value := number(record.get(key))) is not None]
    if not values:
        return Cell("–")
    counts = all(isinstance(value, int) for value in values)
    form = _count if counts else _percent if is_share(key.removeprefix("eval/")) else _number
    low, high = form(min(values)), form(max(values))
    spread = f"{low.removesuffix(' %')} – {high}" if low != high else ""
    return Cell(form(fmean(values)), spread)


def _tables(found: StudyRecords) -> list[tuple[str, list[tuple[str, Cell]]]]:
    """Figures of table.json of stages that were not evaluated, or that have others."""
    tables = []
    for name, stages in found.stages.items():
        flat = [dict(_flat(stage.table)) for stage in stages if stage.table]
        keys = list(dict.fromkeys(key for table in flat for key in table))
        if flat and not any(stage.evaluations for stage in stages):
            tables.append((name, [(key, _cell(flat, key)) for key in keys]))
    return tables


def _flat(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) and key != "per_problem":
            found += _flat(value, f"{prefix}{key}/")
        elif (figure := number(value)) is not None:
            found.append((prefix + key, figure))
    return found


def _times(found: StudyRecords) -> list[tuple[str, float, float]]:
    means = {
        name: fmean(seconds)
        for name, stages in found.stages.items()
        if (seconds := [stage.seconds for stage in stages if stage.seconds is not None])
    }
    longest = max(means.values(), default=0.0) or 1.0
    return [(name, seconds, seconds / longest) for name, seconds in means.items()]


def _questions(found: StudyRecords) -> list[tuple[str, str, list[Answer]]]:
    """Questions that the most stages of the first run were asked, and what each said."""
    if not found.runs:
        return []
    asked: dict[str, list[Answer]] = {}
    references: dict[str, str] = {}
    for stage in found.runs[0].stages:
        for sample in stage.samples:
            question = str(sample["question"])
            references[question] = str(sample.get("reference", ""))
            asked.setdefault(question, []).append(_answer(stage, sample))
    order = sorted(asked, key=lambda question: -len(asked[question]))[:QUESTIONS]
    return [
        (_printable(question), _printable(references[question]), asked[question])
        for question in order
    ]


def _answer(stage: StageRecords, sample: Record) -> Answer:
    rewards = [
        (name, "–" if value is None else _number(value), bool(value and value > 0))
        for name, found in (sample.get("rewards") or {}).items()
        for value in [number(found)]
    ]
    text = _printable(str(sample.get("completion", "")))
    return Answer(stage.name, text, bool(sample.get("finished", True)), rewards)


def _printable(text: str) -> str:
    """Without control characters, which a page may not have, shortened in the middle."""
    text = "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
    if len(text) <= CHARACTERS:
        return text
    half = CHARACTERS // 2
    return f"{text[:half]} … {text[-half:]}"


def _breakable(name: str) -> Markup:
    """A name that may go on in another line where its parts meet."""
    return Markup("<wbr>").join(re.split("(?<=[/_])", name))


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _signed(value: float | None, scale: str) -> str:
    if value is None:
        return "–"
    return f"{100 * value:+.1f} %" if scale == "share" else f"{value:+.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
