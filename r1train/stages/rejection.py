"""Rejection sampling: of many completions, those that are good enough to learn from.

DeepSeek-R1 (arXiv 2501.12948, 2.3.3) keeps the correct ones of several for each prompt, judged by
rule or by a model, and drops thoughts of mixed languages, with long paragraphs or code blocks.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from typing import cast

from r1train.config.rejection import RejectionConfig
from r1train.config.schema import nearest
from r1train.config.sections import Config
from r1train.data.demonstrations import check_demonstrations, conversations
from r1train.data.mixture import apportion
from r1train.data.problems import ProblemSet
from r1train.data.response import thoughts
from r1train.data.row_file import Row
from r1train.data.samples import Sample
from r1train.data.selection import shuffled
from r1train.data.similarity import jaccard, shingles
from r1train.model.limits import positions
from r1train.rewards.manager import EVALUATED
from r1train.rewards.registry import find_reward
from r1train.seeds import derive_seed
from r1train.stages.base import Context
from r1train.stages.sample import DROPPED, SampleStage

TRUNCATED, UNJUDGED, PARAGRAPHS, CODE = "truncated", "unjudged", "long_paragraphs", "code_blocks"
DUPLICATE, SURPLUS = "duplicate", "surplus"
FENCES = ("```", "~~~")
OF_FORM = {"format", "language", "repetition"}
"""Rewards that do not say whether an answer is any good."""


class Rejection(SampleStage):
    """Each completion is dropped for the first reason that holds, or kept:

    - truncated: the length limit cut it off;
    - the name of a reward: it has less than `min_rewards` asks for;
    - unjudged: no reward but those of its form applies, so that nothing says whether it is right;
    - long_paragraphs, code_blocks: in its thoughts;
    - duplicate: too similar to one of the same problem that is kept, in a random order;
    - surplus: `keep` others of the problem are kept.
    """

    uses = ("task", "rewards", "rollout", "rejection")
    section = "rejection"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.config = cast(RejectionConfig, self.options(context.config))
        least = self.config.min_rewards
        self.judges = least.keys() - OF_FORM
        self.reasons = (TRUNCATED, *least, UNJUDGED, PARAGRAPHS, CODE, DUPLICATE, SURPLUS)

    @classmethod
    def check_files(cls, config: Config) -> None:
        check_demonstrations(config.rejection.mix, config.task, "rejection.mix")

    @classmethod
    def check(cls, config: Config, train: ProblemSet) -> None:
        """Besides, the rewards are computed that are asked for."""
        super().check(config, train)
        own = cast(RejectionConfig, cls.options(config))
        known = {*EVALUATED, *(find_reward(function)[0] for function in config.rewards.functions)}
        for name in own.min_rewards:
            reason = f"{name} is none of rewards.functions: add it there; {nearest(name, known)}"
            own.require(name in known, "min_rewards", reason)

    def drop(self, group: Sequence[Sample], rows: Sequence[Row], place: int) -> None:
        rng = random.Random(derive_seed(self.context.seed, "keep", place))
        kept: list[frozenset[tuple[int, ...]]] = []
        for i in rng.sample(range(len(group)), len(group)):
            if reason := self._fault(group[i], rows[i]):
                rows[i][DROPPED] = reason
                continue
            own = shingles(group[i].completion_ids)
            if self._repeats(own, kept):
                rows[i][DROPPED] = DUPLICATE
            elif len(kept) == self.config.keep:
                rows[i][DROPPED] = SURPLUS
            else:
                kept.append(own)

    def _fault(self, sample: Sample, row: Row) -> str | None:
        """What is wrong with a completion by itself."""
        if not sample.finished:
            return TRUNCATED
        config, values = self.config, row["rewards"]
        for name, least in config.min_rewards.items():
            if values[name] is not None and values[name] < least:
                return str(name)
        if all(values[name] is None for name in self.judges):
            return UNJUDGED
        thought = thoughts(row["completion"])
        longest = max((len(line.strip()) for line in thought.splitlines()), default=0)
        if 0 < config.max_paragraph_length < longest:
            return PARAGRAPHS
        if config.drop_code_blocks and any(fence in thought for fence in FENCES):
            return CODE
        return None

    def _repeats(
        self, own: frozenset[tuple[int, ...]], kept: Sequence[frozenset[tuple[int, ...]]]
    ) -> bool:
        """Whether one that is kept is nearly the same: at most `keep` are compared."""
        most = self.config.max_similarity
        return any(own == other or jaccard(own, other) > most for other in kept)

    def further(self, kept: int) -> Iterator[Row]:
        """General data, `mix_share` of the whole: as many of each file as its weight says."""
        config, context = self.config, self.context
        if not config.mix:
            return
        files = [
            conversations(
                dataset,
                context.config.task,
                context.tokenizer,
                heldout=context.reserved,
                positions=positions(context.model),
            )
            for dataset in config.mix
        ]
        wanted = round(kept * config.mix_share / (1 - config.mix_share))
        counts = apportion(wanted, [dataset.weight or 1.0 for dataset in config.mix])
        for i, (file, count) in enumerate(zip(files, counts, strict=True)):
            if count > len(file):
                logging.getLogger("r1train").warning(
                    "%s: %d demonstrations are to be mixed in, and there are %d: all are taken",
                    *(config.mix[i].path, count, len(file)),
                )
            rng = random.Random(derive_seed(context.seed, "mix", i))
            for messages in shuffled(file, rng)[:count]:
                named = [{"role": role, "content": text} for role, text in messages]
                yield {"messages": named, "source": config.mix[i].path}
