"""Which verifier an answer goes to: that of its problem's source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from r1train.config import DatasetConfig
from r1train.gym import scorer
from r1train.verify import is_hedge, math_equal

if TYPE_CHECKING:
    from r1train.tasks import Problem


@dataclass(frozen=True)
class Verifier:
    """Scores answers. It holds only configuration, so that it travels to a worker process."""

    datasets: tuple[DatasetConfig, ...]

    def warm_up(self) -> None:
        """Import what the verifiers of these sources need, and nothing else."""
        for dataset in self.datasets:
            if dataset.name is None:
                import math_verify  # noqa: F401
            else:
                scorer(dataset.name, json.dumps(dataset.params, sort_keys=True))

    def __call__(self, answer: str | None, problem: Problem) -> float:
        """Score in [0, 1] of an extracted answer; None, empty and hedged answers get 0."""
        if answer is None or not answer.strip() or is_hedge(answer, problem.answer):
            return 0.0
        dataset = self.datasets[problem.source]
        if dataset.name is None:
            return float(math_equal(answer, problem.answer))
        entry_scorer = scorer(dataset.name, json.dumps(dataset.params, sort_keys=True))
        entry = {
            "question": problem.question,
            "answer": problem.answer or None,
            "metadata": problem.metadata,
        }
        return float(entry_scorer.score_answer(answer.strip(), entry))
