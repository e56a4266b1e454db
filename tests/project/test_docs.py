"""Every command, example and link of the README and the docs works, and the reference is complete.

Commands run in this process, in short: ``HOW`` says what stands for each. One that fits none of its
patterns fails, so that none is written down without being run.
"""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "examples/README.md", *sorted((ROOT / "docs").rglob("*.md")))
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
FENCE = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)

# Settings that make a trainer run of minutes one of seconds.
SHORT = [
    "sft.max_steps=2", "sft.batch_size=8", "grpo.max_steps=2", "grpo.prompts_per_step=2",
    "grpo.num_generations=2", "eval.limit=4", "eval.k=2", "rollout.max_completion_length=16",
    "threads=1",
]  # fmt: skip
FEW_PROBLEMS = ["task.train_size=32", "task.heldout_size=4"]  # where they are made, not read

SLOW = re.compile(r"python -m benchmarks --quick")  # torch.compile of the peers


def fenced(language: str) -> Iterator[tuple[str, str | None, str]]:
    """(page, title, text) of every block in a language."""
    for page, text in TEXTS.items():
        for found, title, body in FENCE.findall(text):
            if found == language:
                yield page, title or None, body


def scripts() -> list[tuple[str, ...]]:
    """Commands, each once; those after a ``cd`` are one script with it."""
    found: list[tuple[str, ...]] = []
    for _, _, body in fenced("bash"):
        commands = [line.split("#")[0].strip() for line in body.splitlines()]
        commands = [command for command in commands if command]
        found += [tuple(commands)] if commands[0].startswith("cd ") else [(c,) for c in commands]
    for text in TEXTS.values():
        inline = re.findall(r"`((?:pip|python|make|r1train) [^`]+)`", FENCE.sub("", text))
        found += [(command,) for command in inline]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader of the docs has it: their files, the examples, a run, a checkpoint."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "examples", folder / "examples")
    for language in ("json", "python", "toml"):
        for _, title, body in fenced(language):
            if title is not None:
                (folder / title).write_text(body, encoding="utf-8")
    few = "train_size = 32\nheldout_size = 4"
    (folder / "my.toml").write_text(f'name = "mine"\n[task]\nprompt_template = "plain"\n{few}\n')
    before = Path.cwd()
    os.chdir(folder)
    try:
        r1train("run r1-zero-mini")
    finally:
        os.chdir(before)
    (folder / "checkpoint").symlink_to("runs/r1-zero-mini/checkpoint")
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            script,
            marks=[pytest.mark.slow] if SLOW.match(script[0]) else [],
            id=" && ".join(script),
        )
        for script in scripts()
    ],
)
def test_command(
    script: tuple[str, ...],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in script:
        found = [(match, run) for how, run in HOW.items() if (match := re.fullmatch(how, command))]
        assert found, f"nothing in HOW says how to run {command!r} here"
        match, run = found[0]
        run(match[1] if match.re.groups else "")
        assert_improves(capsys.readouterr().out)
    monkeypatch.undo()


def assert_improves(output: str) -> None:
    """An example that prints its steps learns: rewards rise, losses fall."""
    for name, sign in (("reward", 1), ("loss", -1)):
        values = re.findall(rf"^step \d+: {name} ([\d.]+)", output, re.MULTILINE)
        if values:
            assert sign * (float(values[-1]) - float(values[0])) > 0, output


def target(name: str) -> None:
    """A recipe is what CI, or another test here, runs; `make demo` is run in short."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    lines = subprocess.run(
        ["make", "-n", name], cwd=ROOT, env=outside, check=True, capture_output=True, text=True
    ).stdout
    if name == "demo":
        command = lines.strip().splitlines()[-1].removeprefix(".venv/bin/r1train ")
        assert command == "run r1-zero-mini"  # which `home` has run


TRACKERS = ("tensorboard", "trackio", "wandb")  # of report_to, which are nobody's extras


def install(arguments: str) -> None:
    """Extras and packages are those that pyproject and Makefile know."""
    text = (ROOT / "pyproject.toml").read_text() + (ROOT / "Makefile").read_text()
    name = shlex.split(arguments)[-1]
    extras = re.fullmatch(r"(?:\.|r1kernels)\[([\w,]+)\]", name)
    wanted = [f"{extra} = [" for extra in extras[1].split(",")] if extras else [name]
    assert name in (".", *TRACKERS) or all(line in text for line in wanted)


def enter(folder: str) -> None:
    os.chdir(folder)


def run_file(path: str) -> None:
    from r1kernels import hf

    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        hf.unregister_fp8()  # an example's registration is for its process


def r1train(arguments: str) -> None:
    from r1train.cli import main

    words = shlex.split(arguments)
    trains = words[0] in ("run", "sft", "grpo", "eval") and "--dry-run" not in words
    made = not any(word.endswith(".toml") for word in words)
    if words == ["run", "r1-mini"]:  # tests/r1train/test_recipes.py runs it in short
        words, trains = [*words, "--dry-run"], False
    settings = [*SHORT, *(FEW_PROBLEMS if made else [])] if trains else []
    assert main([*words, *settings]) == 0


def benchmarks(arguments: str) -> None:
    """Measured with --quick; what would write to this repository, or needs a GPU, is left out."""
    from benchmarks import __main__ as program

    words = shlex.split(arguments)
    with pytest.MonkeyPatch.context() as patched:
        for module, name in ((program.plot, "draw"), (program.roofline, "draw")):
            patched.setattr(module, name, lambda records: [])
        patched.setattr(program.prove, "write", lambda records: None)
        if "tune" in words:
            tune = pytest.importorskip("benchmarks.tune", exc_type=ImportError)
            patched.setattr(tune, "tune", lambda device, op: None)
        measures = not words or set(words) & {*program.MEASURE, "--op"}
        quick = ["--quick"] if measures and "--quick" not in words else []
        patched.setattr(sys, "argv", ["benchmarks", *words, *quick])
        program.main()


def kernels(_: str) -> None:
    from r1kernels.__main__ import table

    assert "linear_logprob" in table()


def triton_build(_: str) -> None:
    """All of it is compiled by test_triton_build.py."""
    build = pytest.importorskip("r1kernels.triton.build", exc_type=ImportError)
    assert list(build.builds(["head.logprob_builds"]))


HOW: dict[str, Callable[[str], None]] = {
    r"make (?:-k )?([\w-]+)": target,
    r"pip install (.+)": install,
    r"cd (\S+)": enter,
    r"python (\S+\.py)": run_file,
    r"python -m r1kernels": kernels,
    r"python -m r1kernels\.triton\.build": triton_build,
    r"python -m benchmarks(.*)": benchmarks,
    r"r1train run r1-zero-mini": lambda _: None,  # `home` has run it
    r"r1train report runs/r1-mini": lambda _: r1train("report runs/r1-zero-mini"),
    r"r1train (.+)": r1train,
}


@pytest.mark.parametrize(
    ("page", "block"),
    [(page, block) for page, _, block in fenced("python")],
    ids=lambda value: value if value in TEXTS else "",
)
def test_python_block(page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page, "exec"), {})


def test_every_example_is_named_and_so_run() -> None:
    files = {path.name for path in (ROOT / "examples").rglob("*.py")}
    commands = {command for script in scripts() for command in script}
    run = {Path(command.split()[1]).name for command in commands if command.endswith(".py")}
    assert files == run


def test_the_readme_shows_the_lines_of_the_example() -> None:
    (lines,) = [body for page, _, body in fenced("json") if page == "README.md"]
    assert (ROOT / "examples/own_data/problems.jsonl").read_text(encoding="utf-8").startswith(lines)


def test_the_readme_reads_where_pictures_cannot_be_found() -> None:
    """A package index shows it without the files beside it."""
    assert not re.search(r"!\[|<img", TEXTS["README.md"])


@pytest.mark.parametrize("page", ["README.md", "examples/README.md"])
def test_links_lead_to_files(page: str) -> None:
    """Those between the pages of the site are checked where it is built."""
    links = re.findall(r"\]\(([^)#]+)", TEXTS[page])
    assert links
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("package", ["r1kernels", "r1kernels.nn", "r1kernels.hf", "r1train"])
def test_the_reference_has_every_public_name(package: str) -> None:
    api = "\n".join(text for page, text in TEXTS.items() if page.startswith("docs/api/"))
    listed = set(re.findall(rf"^::: {package}\.(?:\w+\.)*(\w+)$", api, re.MULTILINE))
    assert set(getattr(importlib.import_module(package), "__all__", ())) <= listed


@pytest.mark.slow  # imports and renders every docstring
def test_the_site_is_built_strictly_and_asks_no_other_host(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    outside = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(words, cwd=ROOT, env=outside, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(TEXTS) - 2
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//', html)


def test_docstrings_become_markdown() -> None:
    pytest.importorskip("griffe")
    to_markdown = runpy.run_path(str(ROOT / "docs/_build/docstrings.py"))["to_markdown"]
    assert to_markdown("Args:\n    a, b,\n        c: sizes.\n    d: one.") == (
        "Args:\n    a, b, c: sizes.\n    d: one."
    )
    assert to_markdown("1 for <think>, see ``<answer>``.") == "1 for &lt;think>, see ``<answer>``."
    table = "=== ===\na   b\n=== ===\nc   d\n=== ==="
    assert to_markdown(f"Text\n\n{table}\n\nmore") == f"Text\n\n```\n{table}\n```\n\nmore"
    example = ">>> f(x,\n...   y)"
    assert to_markdown(f"Text\n\n{example}\n\nmore") == (
        f"Text\n\n```python\n{example}\n```\n\nmore"
    )
