"""Every command and every example of the README runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import MEASURE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

# Settings that make a trainer run of minutes one of seconds.
SHORT = [
    "sft.max_steps=2", "sft.batch_size=8", "grpo.max_steps=2", "grpo.prompts_per_step=2",
    "grpo.num_generations=2", "task.heldout_size=4", "task.train_size=32", "eval.k=2",
    "rollout.max_completion_length=16",
]  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
COMMANDS += re.findall(r"`((?:pip|python|make|r1train) [^`]+)`", README)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands run: runs/r1-zero-mini is there, as it is for someone who ran the demo."""
    path = tmp_path_factory.mktemp("readme")
    run("r1train run r1-zero-mini", path)
    (path / "my.toml").write_text('name = "mine"\n[task]\nprompt_template = "plain"\n')
    (path / "checkpoint").symlink_to(path / "runs/r1-zero-mini/checkpoint")
    return path


def run(command: str, folder: Path) -> str:
    words = shlex.split(command)
    if words[0] == "r1train":
        trains = words[1] in ("run", "sft", "grpo", "eval") and "--dry-run" not in words
        words = [sys.executable, "-m", "r1train", *words[1:], *(SHORT if trains else [])]
    elif words[0] == "python":
        measures = words[2:3] == ["benchmarks"] and set(words) & set(MEASURE)
        words = [sys.executable, *words[1:], *(["--quick"] if measures else [])]  # and no record
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_command(command: str, folder: Path) -> None:
    first, *rest = shlex.split(command)
    if first == "make":
        check_target(rest[0], folder)
    elif first == "pip":
        check_install(rest)
    else:
        run(command, folder)


def check_target(target: str, folder: Path) -> None:
    """A target's recipe is what CI, or another test here, runs; `make demo` is run in short."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    lines = subprocess.run(
        ["make", "-n", target], cwd=ROOT, env=outside, check=True, capture_output=True, text=True
    ).stdout
    if target == "demo":
        last = lines.strip().splitlines()[-1].removeprefix(".venv/bin/")
        assert last == "r1train run r1-zero-mini"
        run(last, folder)


def check_install(arguments: list[str]) -> None:
    """Extras and packages that the README names are those that pyproject and Makefile know."""
    text = (ROOT / "pyproject.toml").read_text() + (ROOT / "Makefile").read_text()
    assert arguments[0] == "install"
    name = arguments[-1]
    extra = re.fullmatch(r"\.\[(\w+)\]", name)
    assert name == "." or (f"{extra[1]} = [" if extra else name) in text


@pytest.mark.parametrize("example", blocks("python"))
def test_example(example: str) -> None:
    exec(compile(example, "README.md", "exec"), {})
