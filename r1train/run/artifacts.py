"""What a stage was made from, so that none is repeated whose inputs are the same."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import r1kernels
import r1train
from r1train.config.paths import FILES
from r1train.config.schema import ConfigError, shown
from r1train.config.sections import Config
from r1train.config.stages import MARK, StageConfig
from r1train.model.presets import PRESETS
from r1train.rewards.custom.function import source_file
from r1train.run.checksums import digest_of, digest_of_files, fault
from r1train.run.references import references
from r1train.seeds import derive_seed
from r1train.stages import kind_of
from r1train.stages.base import Artifact, ArtifactKind

FILE = "artifact.json"
# They decide what is shown, and how soon, but nothing that a stage leaves.
WITHOUT_EFFECT = {"log_completions_steps", "save_steps", "workers", "concurrency"}
OF_THE_RUN = ("dtype", "precision", "fp8_layers", "elementwise", "threads", "model")
ORIGIN = {"preset", "path", "gguf_file"}
READS: dict[str, ArtifactKind] = {
    "task.datasets": "samples",
    "sft.datasets": "samples",
    "reward_model.datasets": "samples",
    "rejection.mix": "samples",
    "rewards.preference.path": "reward_model",
    "rewards.safety.path": "reward_model",
    "distill.teacher": "checkpoint",
    "search.value_model": "process_reward_model",
}
"""Options that may name a stage, by where they begin, and what it must leave."""


@dataclass(frozen=True)
class Plan:
    """A stage of a run, with its own options and seed, and what it is made from."""

    stage: StageConfig
    config: Config
    seed: int
    init: Plan | str | None
    """The stage, or the folder or preset that its model comes from; None: the section [model]."""
    evaluated: bool
    """Whether held-out problems are evaluated before and after it."""
    read: tuple[Plan, ...] = ()
    """The stages that its options name, whose artifacts it reads."""

    @property
    def needs(self) -> tuple[Plan, ...]:
        """The stages that must be finished before it."""
        return (self.init, *self.read) if isinstance(self.init, Plan) else self.read

    @property
    def name(self) -> str:
        return str(self.stage.name)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What decides what it leaves; data and models that are files are read for it, once."""
        return {"run_seed": self.config.seed, **_inputs(self)}

    @property
    def inputs_hash(self) -> str:
        text = json.dumps(self.inputs, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan(config: Config) -> list[Plan]:
    """The stages of a recipe in order. Raises ConfigError where `init` or an option names no
    stage before that leaves what is read, or a stage is to be evaluated that trains no model."""
    plans: list[Plan] = []
    for stage in config.stages:
        own = config.of(stage)
        init = _init(stage, plans, config)
        seed = stage.seed
        if seed is None:
            seed = derive_seed(config.seed, "stage", stage.name)
        answers = kind_of(stage.kind).leaves == "checkpoint"
        if stage.evaluate and not answers and stage.kind != "evaluate":
            reason = "it trains no model that answers: there is nothing to evaluate"
            raise ConfigError(f"stage {shown(stage.name)}: evaluate = True: {reason}")
        evaluated = stage.evaluate
        if evaluated is None:
            evaluated = answers and stage is config.stages[-1]
        plans.append(Plan(stage, own, seed, init, evaluated, _read(stage, own, plans)))
    return plans


def _read(stage: StageConfig, config: Config, before: list[Plan]) -> tuple[Plan, ...]:
    """The stages whose artifacts its options name. Raises ConfigError where one is none before it,
    or leaves something else than what is read."""
    found: dict[str, Plan] = {}
    known = {plan.name: plan for plan in before}
    for section, value in kind_of(stage.kind).used(config).items():
        for key, name in references(value, section):
            text = f"stage {shown(stage.name)}: {key} = {shown(MARK + name)}"
            if name not in known:
                names = ", ".join(known) or "none"
                raise ConfigError(f"{text}: expected a stage before it ({names})")
            leaves = kind_of(known[name].stage.kind).leaves
            wanted = next((READS[option] for option in READS if key.startswith(option)), leaves)
            if leaves != wanted:
                reason = f"expected a stage that leaves {shown(wanted)}, and it leaves"
                raise ConfigError(f"{text}: {reason} {shown(leaves)}")
            found[name] = known[name]
    return tuple(found.values())


def _init(stage: StageConfig, before: list[Plan], config: Config) -> Plan | str | None:
    models = [plan for plan in before if kind_of(plan.stage.kind).leaves == "checkpoint"]
    if stage.init is None:
        return models[-1] if models else None
    for plan in models:
        if plan.name == stage.init:
            return plan
    known = stage.init.removeprefix("preset:") in PRESETS and stage.init.startswith("preset:")
    if known or (Path(stage.init) / "config.json").is_file():
        return stage.init
    names = ", ".join(plan.name for plan in models) or "none"
    base = stage.init == config.model.path
    raise ConfigError(
        f"stage {shown(stage.name)}: init = {shown(stage.init)}: expected a stage before it that "
        f"leaves a model ({names}), a HuggingFace folder, or preset:{' or preset:'.join(PRESETS)}"
        f"{config.reference.how_to_get(stage.init) if base else ''}"
    )


def _inputs(plan: Plan) -> dict[str, Any]:
    options: dict[str, Any] = {}
    own, init = kind_of(plan.stage.kind).used(plan.config), plan.init
    for name, value in {**own, **{name: getattr(plan.config, name) for name in OF_THE_RUN}}.items():
        options[name] = value if isinstance(value, str | int | bool | None) else asdict(value)
    if init is not None:  # in the place of what [model] says of where it comes from
        options["model"] = {k: v for k, v in options["model"].items() if k not in ORIGIN}
    options = _plain(options)
    if isinstance(init, Plan):
        origin: dict[str, Any] = {"stage": init.name, "inputs": init.inputs_hash}
    elif init is not None:
        folder = Path(init)
        origin = {"init": init, "contents": digest_of(folder) if folder.is_dir() else ""}
    else:
        origin = {}
    return {
        "kind": plan.stage.kind,
        "seed": plan.seed,
        **options,
        "init": origin,
        **({"read": {one.name: one.inputs_hash for one in plan.read}} if plan.read else {}),
        "files": {path: digest_of(Path(path)) for path in sorted(set(_files(options)))},
        "r1kernels": r1kernels.__version__,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if key not in WITHOUT_EFFECT}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _files(value: Any, key: str = "") -> Iterator[str]:
    """Paths of files and folders among options, and of the code of users' functions."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _files(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _files(item, key)
    elif isinstance(value, str):
        if key == "functions":
            file = source_file(value)
            yield from [str(file)] if file else []
        elif key in FILES:
            yield from [value] if Path(value).exists() else glob.glob(value)


@cache
def code_hash() -> str:
    """Of the sources of both packages and of the compiled kernels.

    It is no input: a stage may take days, and most changes of the code are none to it. But what is
    taken from other code is said.
    """
    found = []
    for package in (r1kernels, r1train):
        folder = Path(package.__path__[0])
        compiled = [folder / name for name in ("_cpp.so", "_cuda.so")]
        files = [*sorted(folder.rglob("*.py")), *(file for file in compiled if file.exists())]
        found.append(digest_of_files(folder, files))
    return hashlib.sha256("".join(found).encode()).hexdigest()[:16]


def difference(new: Mapping[str, Any], old: Mapping[str, Any], where: str = "") -> str | None:
    """The first input that is not the same, as `grpo.learning_rate is 0.0005, was 0.0004`."""
    for key in (*new, *(key for key in old if key not in new)):
        now, before = new.get(key), old.get(key)
        name = f"{where}.{key}".lstrip(".")
        if now == before:
            continue
        if isinstance(now, Mapping) and isinstance(before, Mapping):
            return difference(now, before, name)
        if where == "files":
            there = Path(key).exists()
            return f"the contents of {key} changed" if there else f"{key} is not there"
        if where == "read":
            return f"the stage {key}, which it reads from, is another"
        if where == "init":
            return "the stage it starts from is another" if key == "inputs" else f"{name} changed"
        return f"{name} is {shown(now)}, was {shown(before)}"
    return None


@dataclass(frozen=True)
class Finished:
    """A stage that is finished, as its folder says."""

    folder: Path
    """Of the stage."""
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def there(self) -> bool:
        """Whether what it left has not been removed."""
        return self.artifact.path.exists()

    @cached_property
    def fault(self) -> str | None:
        """Why what it left cannot be used; None where every file is as it was written."""
        if not self.record.get("files"):
            return "its record has no checksums, since an earlier version wrote it"
        return fault(self.artifact.path, self.record["files"])

    @property
    def artifact(self) -> Artifact:
        kind: ArtifactKind = self.record["kind"]
        return Artifact(kind, self.folder / self.record["path"], self.record["inputs_hash"])


def finished(run: Path) -> dict[str, Finished]:
    """The finished stages of a run folder, by name, whether their artifacts are there or not."""
    found: dict[str, Finished] = {}
    for file in sorted(run.glob(f"*/{FILE}")):
        try:
            stage = Finished(file.parent, json.loads(file.read_text()))
            if stage.artifact.inputs_hash:
                found[stage.name] = stage
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged: the stage is run again
    return found
