"""The judge's verdict as a reward."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from r1train.config.rewards import RewardConfig
from r1train.config.schema import RunError
from r1train.data.problems import ProblemSet
from r1train.data.samples import Sample
from r1train.rewards.base import Reward, Scores
from r1train.rewards.custom.reward import fields
from r1train.rewards.judge.client import ChatClient, Failure
from r1train.rewards.judge.verdicts import RUBRIC, compare, score
from r1train.rewards.judged import judged, part_of


class JudgeReward(Reward):
    """A score by a rubric, or how far the completion is preferred to a reference; both in [0, 1].

    None where rules decide, where there is no reference, and where the judge gives no verdict,
    which is counted. RunError where it gives none for all of its first completions.
    """

    def __init__(self, config: RewardConfig, problems: ProblemSet) -> None:
        self.config = config.judge
        self.client = ChatClient(config.judge)
        self.worked = self.warned = False

    def close(self) -> None:
        self.client.close()

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        rubric, field = self.config.rubric or RUBRIC, self.config.reference_field
        rows = judged(samples, self.config.applies)
        said = {row: part_of(samples[row], self.config.part) for row in rows}
        asked = {row: samples[row].problem.question for row in rows}
        if field is None:
            verdicts = score(self.client, [(asked[r], said[r]) for r in rows], rubric)
        else:
            known = {row: fields(samples[row].problem).get(field) for row in rows}
            rows = [row for row in rows if known[row]]
            triples = [(asked[row], said[row], str(known[row])) for row in rows]
            verdicts = compare(self.client, triples, rubric)
        values: list[float | None] = [None] * len(samples)
        for row, verdict in zip(rows, verdicts, strict=True):
            values[row] = None if isinstance(verdict, Failure) else verdict
        failures = [verdict for verdict in verdicts if isinstance(verdict, Failure)]
        self._tell(failures, len(verdicts))
        kinds = [failure.kind for failure in failures]
        return Scores(values, kinds.count("error"), kinds.count("timeout"))

    def _tell(self, failures: Sequence[Failure], count: int) -> None:
        if failures:
            text = f"rewards.judge: no verdict for {len(failures)} of {count} completions"
            text += f": {failures[0].message}"
            if len(failures) == count and not self.worked:
                raise RunError(text)
            if not self.warned:
                self.warned = True
                counted = "rewards/judge/errors and /timeouts"
                logging.getLogger("r1train").warning("%s (counted in %s)", text, counted)
        self.worked = self.worked or len(failures) < count
