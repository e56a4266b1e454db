"""Which verifier an answer goes to: that of its problem's source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1train.config.task import DatasetConfig
from r1train.data.tasks import TASKS
from r1train.rewards.gym import score, scorer
from r1train.rewards.gym_checks import CHECKS
from r1train.verify import is_hedge, verify

if TYPE_CHECKING:
    from r1train.data.problems import Problem


@dataclass(frozen=True)
class Verifier:
    """Scores answers. It holds only configuration, so that it travels to a worker process."""

    datasets: tuple[DatasetConfig, ...]

    def warm_up(self) -> None:
        """Import what the verifiers of these sources need, and nothing else."""
        for dataset in self.datasets:
            if dataset.name is not None and dataset.name not in TASKS:
                scorer(dataset.name, dataset.params)

    def __call__(self, answer: str | None, problem: Problem) -> float:
        """Score in [0, 1] of an extracted answer; None and empty answers get 0.

        Answers of a JSONL file and of our own tasks go to `verify`; those of a reasoning-gym
        dataset to its own verifier, unless they offer alternatives, which those verifiers do not
        expect; our own checks do.
        """
        if answer is None or not answer.strip():
            return 0.0
        dataset = self.datasets[problem.source]
        if dataset.name is None or dataset.name in TASKS:
            return verify(answer, problem.answer, answer_type=problem.answer_type)
        name = problem.metadata.get("source_dataset", dataset.name)  # a composite's part
        if name not in CHECKS and is_hedge(answer, problem.answer):
            return 0.0
        entry = {
            "question": problem.question,
            "answer": problem.answer or None,
            "metadata": problem.metadata,
        }
        return score(dataset.name, dataset.params, answer.strip(), entry)
