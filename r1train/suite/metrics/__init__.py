"""How answers are scored, one file for each way; imported when a benchmark needs it."""

from __future__ import annotations

from importlib import import_module

from r1train.config.sections import Config
from r1train.suite.metrics.base import MetricBase
from r1train.suite.specs import Benchmark

METRICS = {
    "math": "exact:MathMetric",
    "choice": "exact:ChoiceMetric",
    "f1": "drop:DropMetric",
    "instructions": "instructions:InstructionMetric",
    "tests": "programs:ProgramMetric",
    "contests": "contests:ContestMetric",
    "judged": "judged:JudgedMetric",
    "pairwise": "pairwise:PairwiseMetric",
    "battles": "pairwise:BattleMetric",
}
JUDGED = ("judged", "pairwise", "battles")
"""Those that ask the judge of `suite.judge`."""


def metric_of(benchmark: Benchmark, config: Config) -> MetricBase:
    """What scores the benchmark. Raises ConfigError where something that it needs is missing."""
    module, name = METRICS[benchmark.metric].split(":")
    found: type[MetricBase] = getattr(import_module(f"r1train.suite.metrics.{module}"), name)
    return found(benchmark, config)
