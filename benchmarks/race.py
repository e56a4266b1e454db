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
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from benchmarks import table
from benchmarks.race_tasks import Race, save_start
from benchmarks.record import Row
from benchmarks.rounds import Round, fastest, pace, ratios, verdict
from benchmarks.whole import WE

NAME = "GRPO step"
RACES = (Race("distinct digits", "qwen2-3m", 4, 8, 16, 16, steps=60, learning_rate=1e-3),)
SEEDS = 2
BEHIND = 0.05  # of what a reward has risen by, and what seeds are apart: no difference
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
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    turns = Turn(pipe)
    try:
        import_module(module).run(race, folder, seed, device, turns)
    except Exception as error:
        pipe.recv()  # the turn that it did not begin, or else the next one
        pipe.send(f"{type(error).__name__}: {error}")


def summary(race: Race, name: str, steps: Mapping[str, list[list[Step]]]) -> Row:
    """Medians over all timed steps, and the reward that they led to."""
    rounds = by_round(steps)
    best = fastest(rounds, [other for other in steps if other != name])
    reward, highest = reached(steps[name]), max(map(reached, steps.values()))
    return Row(
        NAME,
        race.name,
        name,
        seconds=race.shape[0] * pace(rounds, name),
        tflops=None,
        gbps=None,
        roofline=None,
        ratio=best and ratios(rounds, name, best).middle,
        error=highest - reward,
        shape=race.shape,
        reward=reward,
    )


def by_round(steps: Mapping[str, list[list[Step]]]) -> list[Round]:
    """The steps of all seeds but the first ones, those made one after another together."""
    rounds = []
    for seed in zip(*steps.values(), strict=True):
        for each in list(zip(*seed, strict=True))[WARMUP:]:
            times = (step.seconds / step.tokens for step in each)
            rounds.append(dict(zip(steps, times, strict=True)))
    return rounds


def reached(seeds: Sequence[Sequence[Step]]) -> float:
    return fmean(map(last_fifth, seeds))


def last_fifth(steps: Sequence[Step]) -> float:
    return fmean(step.reward for step in steps[-max(1, len(steps) // 5) :])


def spread(seeds: Sequence[Sequence[Step]]) -> float:
    rewards = [last_fifth(steps) for steps in seeds]
    return (max(rewards) - min(rewards)) / 2


def verdicts(steps: Mapping[str, list[list[Step]]]) -> Iterator[str]:
    """Who is faster, and whether that is worth anything."""
    for other in steps:
        if other == WE or WE not in steps:
            continue
        ours, theirs = reached(steps[WE]), reached(steps[other])
        rise = theirs - fmean(seed[0].reward for seed in steps[other])
        behind = max(0.0, theirs - ours)
        noise = max(BEHIND * rise, spread(steps[WE]) + spread(steps[other]))
        yield verdict(by_round(steps), WE, other)
        yield (
            f"Its reward is {ours:.3f} against {theirs:.3f} of {other}"
            + (": as good." if behind <= noise else f": {behind / rise:.0%} LESS of the rise.")
        )


def cells(row: Row, apart: float) -> list[str]:
    """What one trainer did, under ``HEADER``."""
    name, time, *_, ratio, _, _ = table.cells(row)
    rate = row.seconds and row.shape[0] / row.seconds
    reward = nan if row.reward is None else row.reward
    return [name, time, table.significant(rate), ratio, f"{reward:.3f}", f"{apart:.3f}"]
