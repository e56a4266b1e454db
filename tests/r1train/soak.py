"""Two thousand steps of a very small run: memory that grows, processes and files that stay.

`python -m tests.r1train.soak` prints the resident memory by step, and what is left at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

OPTIONS = (
    *("threads=1", "model.preset=deepseek-v3-mini", "task.prompt_template=plain"),
    *("task.train_size=64", "task.heldout_size=8", 'stages=["grpo"]', "grpo.prompts_per_step=2"),
    *("grpo.num_generations=4", "rollout.max_completion_length=8", "eval.k=1", "grpo.beta=0.0"),
    "grpo.eval_steps=200",
)
PAGE = os.sysconf("SC_PAGE_SIZE")
WARM_UP = 0.1  # of the steps


def resident(process: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE


def descriptors(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as name:
        scratch, runs, recipe = Path(name, "tmp"), Path(name, "runs"), Path(name, "soak.toml")
        scratch.mkdir()
        recipe.write_text("")
        command = [sys.executable, "-m", "r1train", "run", str(recipe), f"output_dir={runs}"]
        process = subprocess.Popen(
            [*command, *OPTIONS, f"grpo.max_steps={steps}"],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        metrics, seen = runs / "soak" / "metrics.jsonl", list[tuple[int, int, int]]()
        helpers: set[int] = set()
        while process.poll() is None:
            time.sleep(0.5)
            try:
                step = metrics.read_text().count('"reward"')
                seen.append((step, resident(process.pid), descriptors(process.pid)))
                helpers.update(children(process.pid))
            except (OSError, IndexError):
                continue
        warm = [one for one in seen if WARM_UP * steps <= one[0] < 2 * WARM_UP * steps]
        last = [one for one in seen if one[0] >= (1 - WARM_UP) * steps]
        before, after = (median(one[1] for one in part) for part in (warm, last))
        alive = [child for child in helpers if Path(f"/proc/{child}").exists()]
        files = [path.name for path in scratch.rglob("*")]
        growth = after / before - 1
        print(f"status {process.returncode}, {seen[-1][0]} steps")
        print(f"resident {before / 2**20:.1f} -> {after / 2**20:.1f} MiB: {growth:+.2%}")
        print(f"descriptors {warm[0][2]} -> {last[-1][2]}")
        print(f"processes left: {alive or 'none'}; files left in TMPDIR: {files or 'none'}")
        return int(bool(process.returncode or growth > 0.02 or alive or files))


if __name__ == "__main__":
    raise SystemExit(main())
