"""Kills a small run at random moments, resumes it, and compares what is left with one unbroken.

`python -m tests.r1train.kills --count 50` prints a table of where the kills hit. A child writes
where it is, by faulthandler at SIGUSR1, just before the SIGKILL.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

RECIPE = """
name = "tiny"
threads = 1
[model]
preset = "deepseek-v3-mini"
[task]
prompt_template = "plain"
train_size = 24
heldout_size = 16
datasets = [{ name = "chain_sum", params = { max_terms = 2, max_digits = 1 } }]
[sft]
max_steps = 8
batch_size = 32
learning_rate = 3e-3
[rollout]
max_completion_length = 24
[grpo]
max_steps = 8
prompts_per_step = 4
num_generations = 8
num_minibatches = 2
learning_rate = 1e-4
eval_steps = 2
beta = 0.01
ref_model_sync_steps = 3
[eval]
k = 2
"""
# After every update a checkpoint: what is killed has always just written one, or is writing it.
PROGRAM = """
import faulthandler, signal, sys
faulthandler.register(signal.SIGUSR1, file=open(sys.argv[1], "w"), all_threads=False)
import r1train.run.trainer
r1train.run.trainer.SAVE_SECONDS = 0.0
from r1train.cli import main
sys.exit(main(sys.argv[2:]))
"""
PLACES = (  # by the innermost function that says it
    ("writing a checkpoint", r"run/checkpoint\.py|run/export\.py"),
    ("evaluation", r"stages/evaluate\.py"),
    ("rollout", r"engine/"),
    ("rewards", r"rewards/"),
    ("update", r"learn/"),
    ("logging", r"run/folder\.py|report/"),
    ("loading", r"model/load|import|run/runner\.py"),
)
TIMED = ("seconds/", "tokens_per_second", "peak_memory_gib")


def left(folder: Path) -> tuple[Any, ...]:
    """All that a run leaves, without times."""
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if not k.startswith(TIMED)}
            for line in (folder / name).read_text().splitlines()
        ]
        for name in ("metrics.jsonl", "samples.jsonl")
    ]
    weights = load_file(folder / "checkpoint" / "model.safetensors")
    return logs, {name: tensor.tolist() for name, tensor in weights.items()}


def child(trace: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(trace), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def place(trace: Path) -> str:
    text = trace.read_text() if trace.exists() else ""
    frames = re.findall(r'File "([^"]+)", line \d+ in (\w+)', text)
    for file, _ in frames:
        for name, pattern in PLACES:
            if re.search(pattern, file):
                return name
    return "start"


def kill_and_resume(folder: Path, recipe: Path, rng: random.Random, most: int) -> list[str]:
    """A run in `folder` that is killed up to `most` times, and where; then it ends unharmed."""
    folder.mkdir(exist_ok=True)
    run = folder / "tiny"
    hits: list[str] = []
    while True:
        started = (run / "plan.json").exists()
        if not started and run.exists():
            shutil.rmtree(run)  # killed before there was anything to go on with
        arguments = (
            ("resume", str(run)) if started else ("run", str(recipe), f"output_dir={folder}")
        )
        trace = folder / f"trace-{len(hits)}"
        process = child(trace, *arguments)
        assert process.stdout is not None
        if len(hits) < most:
            first = process.stdout.readline()  # from here on it is at work
            time.sleep(rng.uniform(0.0, 3.0) if first else 0.0)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGUSR1)
                time.sleep(0.01)
                process.kill()
                process.communicate()
                hits.append(place(trace))
                continue
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{arguments}: status {process.returncode}: {output}")
        if any(path.name.endswith(".partial") for path in run.rglob("*")):
            print("left over:", [str(p) for p in run.rglob("*.partial")])
        return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, hits, runs = random.Random(options.seed), list[str](), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "tiny.toml"
        recipe.write_text(RECIPE)
        kill_and_resume(folder / "whole", recipe, rng, 0)
        whole = left(folder / "whole" / "tiny")
        while len(hits) < options.count:
            runs += 1
            target = folder / f"run-{runs}"
            hits += kill_and_resume(target, recipe, rng, options.count - len(hits))
            same = left(target / "tiny") == whole
            print(f"run {runs}: {len(hits)} kills so far, {'the same' if same else 'DIFFERENT'}")
            if not same:
                raise SystemExit(1)
    print(f"{len(hits)} kills in {runs} runs, each of which ended as the unbroken one, bit for bit")
    for where, count in Counter(hits).most_common():
        print(f"| {where} | {count} |")


if __name__ == "__main__":
    main()
