"""Whole steps of GRPO — rollout, reward, update — by several trainers, in tokens a second.

Every trainer has a process of its own, which no other one patches, and all start from the same
weights. They take turns, a step each, so that drift and noise hit all alike. Speed counts at equal
reward alone: after the same number of steps the rewards are compared too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from math import nan
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks import table
from benchmarks.race_tasks import Race, save_start
from benchmarks.record import Row
from benchmarks.whole import WE

NAME = "GRPO step"
RACES = (Race("letters and digits", "qwen2-3m", 4, 8, 16, 16, steps=60, learning_rate=1e-3),)
SEEDS = 2
WARMUP = 3  # steps of each that are learned from and not timed
TRAINERS = {WE: "benchmarks.race_ours", "trl": "benchmarks.peers.trl_race"}
NEEDS = {WE: ("transformers",), "trl": ("transformers", "trl", "datasets")}
HEADER = ("run by", "step", "tokens/s", "÷best", "reward", "±")


class Step(NamedTuple):
    seconds: float
    tokens: int
    reward: float


class Turn:
    """A trainer's end of the pipe to the race; see ``race_tasks.Turns``."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.start = pipe, 0.0

    def begin(self) -> None:
        self.pipe.recv()
        self.start = time.perf_counter()

    def end(self, tokens: int, reward: float) -> None:
        self.pipe.send(Step(time.perf_counter() - self.start, tokens, reward))


class Result(NamedTuple):
    """Steps of every trainer, one list for each seed."""

    steps: dict[str, list[list[Step]]]
    problems: list[str]


def bench(device: str, quick: bool) -> Iterator[list[Row]]:
    """Run every race, print a table each and who wins, and give the rows."""
    if find_spec("transformers") is None:
        return
    for race in RACES:
        if quick:
            race = race._replace(steps=race.steps // 3)
        result = run(race, device, 1 if quick else SEEDS)
        rows = [summary(race, name, result.steps) for name in result.steps]
        spreads = {name: spread(seeds) for name, seeds in result.steps.items()}
        table.show(
            f"{NAME}, {race.describe()}",
            rows,
            [*result.problems, *verdicts(result.steps)],
            HEADER,
            lambda row, spreads=spreads: cells(row, spreads[row.implementation]),
        )
        yield rows
    print("reward is the mean of the last fifth of the steps, ± half of what seeds are apart.")


def run(race: Race, device: str, seeds: int) -> Result:
    """Every trainer that can run here, from as many starts."""
    names = [name for name in TRAINERS if all(map(find_spec, NEEDS[name]))]
    steps: dict[str, list[list[Step]]] = {name: [] for name in names}
    for seed in range(seeds):
        with TemporaryDirectory() as folder:
            save_start(race, seed, Path(folder))
            found, problems = from_one_start(race, names, Path(folder), seed, device)
        if problems:
            return Result({}, problems)
        for name in names:
            steps[name].append(found[name])
    return Result(steps, [])


def from_one_start(
    race: Race, names: Sequence[str], folder: Path, seed: int, device: str
) -> tuple[dict[str, list[Step]], list[str]]:
    """The steps of each trainer, made in turn: A B, B A, A B …; or what went wrong."""
    spawn = get_context("spawn")
    steps: dict[str, list[Step]] = {name: [] for name in names}
    with ExitStack() as closing:
        pipes = {}
        for name in names:
            pipes[name], theirs = spawn.Pipe()
            process = spawn.Process(
                target=_train,
                args=(TRAINERS[name], race, folder, seed, device, torch.get_num_threads(), theirs),
                daemon=True,
            )
            process.start()
            theirs.close()
            closing.callback(process.join)
            closing.callback(process.terminate)
        for done in range(race.steps):
            for name in names[:: 1 if done % 2 == 0 else -1]:
                try:
                    pipes[name].send(None)
                    found = pipes[name].recv()
                except (EOFError, BrokenPipeError):
                    found = "its process ended"
                if isinstance(found, str):
                    return {}, [f"{name}: {found}"]
                steps[name].append(found)
    return steps, []


def _train(
    module: str, race: Race, folder: Path, seed: int, device: str, threads: int, pipe: Connection
) -> None:
    torch.set_num_threads(threads)
    turns = Turn(pipe)
    try:
        import_module(module).run(race, folder, seed, device, turns)
    except Exception as error:
        pipe.recv()  # the turn that it did not begin, or else the next one
        pipe.send(f"{type(error).__name__}: {error}")


def summary(race: Race, name: str, steps: Mapping[str, list[list[Step]]]) -> Row:
    """Medians over all timed steps; the ratio is that of steps that were made one after another."""
    timed = of_all_seeds(steps[name])
    rewards = [last_fifth(seed) for seed in steps[name]]
    others = [other for other in steps if other != name]
    best = min(others, key=lambda other: pace(of_all_seeds(steps[other])), default=None)
    ratio = None if best is None else ratios(steps, name, best)[1]
    highest = max(fmean(map(last_fifth, seeds)) for seeds in steps.values())
    return Row(
        NAME,
        race.name,
        name,
        seconds=race.shape[0] * pace(timed),
        tflops=None,
        gbps=None,
        roofline=None,
        ratio=ratio,
        error=highest - fmean(rewards),
        shape=race.shape,
        reward=fmean(rewards),
    )


def of_all_seeds(seeds: Sequence[Sequence[Step]]) -> list[Step]:
    return [step for steps in seeds for step in steps[WARMUP:]]


def pace(steps: Sequence[Step]) -> float:
    """Seconds a token."""
    return median(step.seconds / step.tokens for step in steps)


def ratios(
    steps: Mapping[str, list[list[Step]]], name: str, other: str
) -> tuple[float, float, float]:
    """Time a token over that of another trainer in the same round: quartiles of all rounds."""
    found = sorted(
        (a.seconds / a.tokens) / (b.seconds / b.tokens)
        for a, b in zip(of_all_seeds(steps[name]), of_all_seeds(steps[other]), strict=True)
    )
    low, middle, high = (found[int(share * (len(found) - 1))] for share in (0.25, 0.5, 0.75))
    return low, middle, high


def last_fifth(steps: Sequence[Step]) -> float:
    return fmean(step.reward for step in steps[-max(1, len(steps) // 5) :])


def spread(seeds: Sequence[Sequence[Step]]) -> float:
    rewards = [last_fifth(steps) for steps in seeds]
    return (max(rewards) - min(rewards)) / 2


def verdicts(steps: Mapping[str, list[list[Step]]]) -> Iterator[str]:
    """Who is faster, and whether their rewards are equal."""
    for other in steps:
        if other == WE:
            continue
        low, middle, high = (1 / ratio for ratio in ratios(steps, WE, other)[::-1])
        ours, theirs = (fmean(map(last_fifth, steps[name])) for name in (WE, other))
        rise = theirs - fmean(seed[0].reward for seed in steps[other])
        equal = "as much" if ours >= theirs - 0.05 * rise else "LESS"
        yield (
            f"{WE} makes {middle:.2f} × the tokens a second of {other} (quartiles {low:.2f} to "
            f"{high:.2f}) and earns {equal}: {ours:.3f} against {theirs:.3f}."
        )


def cells(row: Row, apart: float) -> list[str]:
    """What one trainer did, under ``HEADER``."""
    name, time, *_, ratio, _, _ = table.cells(row)
    rate = row.seconds and row.shape[0] / row.seconds
    reward = nan if row.reward is None else row.reward
    return [name, time, table.significant(rate), ratio, f"{reward:.3f}", f"{apart:.3f}"]
