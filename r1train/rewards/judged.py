"""What a model that judges is shown: which completions, and which part of them."""

from __future__ import annotations

from collections.abc import Sequence

from r1train.config.judgements import Applies, Part
from r1train.data.response import summary
from r1train.data.samples import Sample


def judged(samples: Sequence[Sample], applies: Applies) -> list[int]:
    """Rows of the samples that are judged: those that no rule can verify, or all."""
    every = applies == "all"
    return [row for row, sample in enumerate(samples) if every or not sample.problem.verifiable]


def part_of(sample: Sample, part: Part) -> str:
    """The part of the completion that is judged; of thoughts that do not end no summary."""
    return summary(sample.completion, sample.prompt) if part == "summary" else sample.completion
