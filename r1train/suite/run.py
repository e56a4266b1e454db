"""A suite of benchmarks on a model: each is asked, scored and kept; what is finished stays.

In the model's folder, `suite/NAME` has the settings, samples and result of a benchmark, and
`suite/tables.md` and `tables.json` what all of them say together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1train.config.schema import ConfigError, RunError
from r1train.config.sections import Config
from r1train.report.console import CONSOLE
from r1train.run.writing import writing
from r1train.seeds import deterministic
from r1train.suite.about import about
from r1train.suite.asking import RESULT, Asking, NoVerdict
from r1train.suite.contamination import contamination
from r1train.suite.questions import files_of
from r1train.suite.results import Result, compare
from r1train.suite.specs import Benchmark, benchmarks, chosen
from r1train.suite.tables import (
    Table,
    as_json,
    comparison,
    contamination_table,
    markdown,
    overview,
    paper_tables,
    show,
)

FOLDER = "suite"
"""In the model's."""
OWN = ("model", "asked", "computed", "confidence")
"""Settings in which two models that are compared may differ."""


@dataclass(frozen=True)
class Asked:
    """What `r1train eval --suite` is told."""

    folder: Path
    """The run, or the HuggingFace checkpoint."""
    data: Path
    """Where the benchmarks' files are."""
    names: tuple[str, ...] = ()
    """Of the benchmarks; empty: all whose files are there."""
    against: Path | None = None
    """Another folder that the same benchmarks were asked of."""
    trained: bool = True
    """Whether the configuration is that which the model was trained with."""


def run_suite(config: Config, asked: Asked) -> dict[str, Result]:
    """Asks what is not finished yet, and writes and shows the tables of all that is, by now or
    before.

    What cannot be asked or judged stops no other benchmark. Once the tables are there it raises
    ConfigError for those that were named and cannot be asked, RunError for those that the judge
    gave no verdict on; ConfigError where nothing can be asked.
    """
    if not asked.data.is_dir():
        raise ConfigError(
            f"--data {asked.data}: no such folder: give one with the benchmarks' files"
        )
    here = chosen(asked.names) if asked.names else _present(asked.data)
    if not here:
        raise ConfigError(
            f"--data {asked.data}: no file of any benchmark: expected a folder or file for each, "
            f"by the names {', '.join(benchmarks())}"
        )
    assert config.model.path is not None  # of an evaluation
    model = Path(config.model.path).resolve()  # of a run, in the stage that its newest is of
    CONSOLE.print(f"model: {model}", soft_wrap=True, markup=False)
    place, results = asked.folder / FOLDER, dict[str, Result]()
    left_out: dict[str, ConfigError | NoVerdict] = {}
    with deterministic(config.threads):
        asking = Asking(config, asked.data, place, trained=asked.trained)
        for benchmark in here:
            try:
                results[benchmark.name] = asking.result(benchmark)
            except (ConfigError, NoVerdict) as error:
                text = f"{benchmark.title}: left out: {error}"
                CONSOLE.print(text, soft_wrap=True, markup=False)
                if asked.names or isinstance(error, NoVerdict):
                    left_out[text] = error
        for name, benchmark in benchmarks().items():
            if name not in results and (earlier := asking.earlier(benchmark)) is not None:
                results[name] = earlier
    if not results:
        _complain(left_out)
        raise ConfigError(f"--data {asked.data}: none of its benchmarks can be asked: see above")
    name = _name(asked.folder)
    tables = [overview(results, model), *paper_tables(results, name, about(model))]
    if asked.trained and config.suite.check_training_data:
        now = [one.name for one in here if one.name in results]
        tables += _contaminated(config, asked.data, now, results)
    if asked.against is not None:
        tables.append(_against(results, asked, config.suite.confidence))
    _write(place, tables)
    for table in tables:
        show(table)
    CONSOLE.print(place / "tables.md", soft_wrap=True)
    _complain(left_out)
    return results


def _complain(left_out: Mapping[str, ConfigError | NoVerdict]) -> None:
    """Raises for benchmarks that should have been there."""
    if left_out:
        settings = all(isinstance(error, ConfigError) for error in left_out.values())
        raise (ConfigError if settings else RunError)("; ".join(left_out))


def _write(place: Path, tables: Sequence[Table]) -> None:
    text = "\n".join(map(markdown, tables))
    content = json.dumps([*map(as_json, tables)], indent=1, ensure_ascii=False) + "\n"
    for name, written in (("tables.md", text), ("tables.json", content)):
        with writing(place / name):
            (place / name).write_text(written, encoding="utf-8")


def _present(data: Path) -> list[Benchmark]:
    return [benchmark for benchmark in benchmarks().values() if files_of(benchmark, data)]


def _contaminated(
    config: Config, data: Path, names: Sequence[str], results: Mapping[str, Result]
) -> list[Table]:
    """Data that is not there any more ends no evaluation."""
    try:
        found = contamination(config, data, names)
    except ConfigError as error:
        CONSOLE.print(f"the training data cannot be looked through: {error}", soft_wrap=True)
        return []
    return [contamination_table(results, found)]


def _name(folder: Path) -> str:
    """What a table calls a model: its folder, or what has a folder "checkpoint"."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "checkpoint" else folder.name


def _against(results: Mapping[str, Result], asked: Asked, confidence: float) -> Table:
    assert asked.against is not None
    others = {
        name: other
        for name in results
        if (other := Result.load(asked.against / FOLDER / name / RESULT)) is not None
    }
    pairs = {
        name: pair
        for name, other in others.items()
        if (pair := compare(results[name], other, confidence)) is not None
    }
    for name in pairs:
        ours, theirs = results[name].settings, others[name].settings
        differ = [key for key in ours if key not in OWN and ours[key] != theirs.get(key)]
        if differ:
            message = f"{results[name].title}: the two were asked with another {', '.join(differ)}"
            CONSOLE.print(message, soft_wrap=True)
    if not pairs:
        raise ConfigError(
            f"--against {asked.against}: it has no result of {', '.join(results)}: first r1train "
            f"eval {asked.against} --suite r1 --data {asked.data}"
        )
    return comparison(pairs, results, others, (_name(asked.folder), _name(asked.against)))
