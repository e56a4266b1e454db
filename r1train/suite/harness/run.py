"""Tasks of lm-evaluation-harness, without a network: a table, and the folder `harness`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from r1train.config.schema import ConfigError, shown
from r1train.config.sections import Config
from r1train.report.console import CONSOLE
from r1train.run.writing import writing
from r1train.seeds import deterministic
from r1train.suite.asking import Asking
from r1train.suite.tables import Table, markdown, show

FOLDER = "harness"


def run_harness(config: Config, folder: Path, tasks: Sequence[str], data: Path | None) -> None:
    """`tasks` by lm-eval's names, or by those of task files (YAML) below `data`.

    Raises ConfigError where lm-eval is not installed, a task is unknown or its data is not here.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError(
            '--harness: lm_eval: not installed; it needs the extra "suite": '
            'pip install "r1kernels[suite]"'
        )
    with deterministic(config.threads), _offline():
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        from r1train.suite.harness.model import HarnessModel

        own = None if data is None else str(data)
        manager = TaskManager(include_path=own, include_defaults=False) if own else None
        if manager is None or not all(manager.match_tasks([task]) for task in tasks):
            manager = TaskManager(include_path=own)  # reads all of lm-eval's, which takes a while
        for task in tasks:
            if not manager.match_tasks([task]):
                raise ConfigError(
                    f"--harness {shown(task)}: no such task; give task files with --data FOLDER, "
                    "or see: lm-eval ls tasks"
                )
        subject = Asking(config, Path(), folder, trained=True).subject
        try:
            found = simple_evaluate(
                HarnessModel(subject),
                tasks=list(tasks),
                task_manager=manager,
                limit=config.suite.limit,
                apply_chat_template=config.task.prompt_template == "chat",
                random_seed=config.seed,
                log_samples=True,
            )
        except (ConnectionError, FileNotFoundError) as error:
            raise ConfigError(
                f"--harness {','.join(tasks)}: a data set of it is neither in the folder that its "
                f"task file names nor in HuggingFace's cache, and nothing is downloaded: {error}"
            ) from error
    table, place = _table(found), folder / FOLDER
    with writing(place):
        place.mkdir(exist_ok=True)
        kept = {name: found.get(name) for name in ("results", "n-samples", "versions", "configs")}
        text = json.dumps(kept, indent=1, default=str, ensure_ascii=False)
        (place / "results.json").write_text(text + "\n", encoding="utf-8")
        (place / "tables.md").write_text(markdown(table), encoding="utf-8")
        for task, samples in found["samples"].items():
            lines = [json.dumps(one, default=str, ensure_ascii=False) for one in samples]
            (place / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    show(table)
    CONSOLE.print(place / "results.json", soft_wrap=True)


def _table(found: dict[str, Any]) -> Table:
    rows = []
    for task, figures in found["results"].items():
        for key, value in figures.items():
            name, _, how = key.partition(",")
            if not isinstance(value, float) or name.endswith("_stderr"):
                continue
            error = figures.get(f"{name}_stderr,{how}")
            error = f"{error:.4f}" if isinstance(error, float) else "–"
            count = found["n-samples"].get(task, {}).get("effective", "–")
            rows.append((task, name, how, f"{value:.4f}", error, str(count)))
    header = ("task", "metric", "filter", "value", "stderr", "n")
    return Table("lm-evaluation-harness", header, tuple(rows))


@contextmanager
def _offline() -> Iterator[None]:
    """Within it no data set is looked for elsewhere, and what lm-eval tells is kept short."""
    import datasets.config
    import huggingface_hub.constants as hub

    before = hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    logger = logging.getLogger("lm_eval")
    level = logger.level
    hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
        logger.setLevel(level)
