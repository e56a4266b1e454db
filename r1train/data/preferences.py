"""What is better than what: judgements of responses, which a reward model learns from.

Rows are as TRL has them: a prompt with a chosen and a rejected response, or with one response and
its label; or responses with scores, as sampling leaves them, the best and the worst of a prompt
being a pair.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from r1train.config.reward_model import PreferencesConfig, RewardModelConfig
from r1train.config.schema import ConfigError
from r1train.config.stages import files_of
from r1train.config.task import TaskConfig
from r1train.data.distinct import HELD, hashed, question_key
from r1train.data.encode import encode_scored
from r1train.data.fields import (
    Message,
    before_end,
    check_unicode,
    conversation,
    lookup,
    plain,
    prompt_key,
    question,
    response_text,
    shown,
)
from r1train.data.problems import ProblemSet
from r1train.data.prompts import opens_think, render_prompt, with_system
from r1train.data.response import summary
from r1train.data.selection import Joined, Selection, shuffled
from r1train.data.sources import open_rows
from r1train.data.sources.base import Row, RowError
from r1train.data.usable import check_rows, usable, warn

EQUAL, MARGIN, SAME = "equal_scores", "margin", "same_response"
LONG, LENGTH = "too_long", "length_ratio"
REASONS = (EQUAL, MARGIN, SAME, LONG, LENGTH)
"""Why a judgement is left out."""


@dataclass(frozen=True)
class Judgement:
    """A prompt, and two responses of which the first is better, or one that is good or not."""

    prompt: list[int]
    responses: tuple[list[int], ...]
    """Tokens, with the end of the sequence (`encode_scored`)."""
    good: float = 1.0
    """Of a single response: 1 or 0."""


@dataclass(frozen=True)
class _Read:
    """What a row says."""

    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    value: float | None
    """By how much the first response is better, how good the only one is, or its label; None: a
    pair without scores."""

    @property
    def key(self) -> int:
        """The same of rows that ask the same."""
        return hashed(question_key(self.messages))


class Preferences:
    """The judgements of all files, apart by their prompts: those to learn from, and those kept out.

    What is left out is counted by reason in `dropped`; judgements of questions in `heldout` are
    left out with a warning. Raises ConfigError where a row cannot be used, unless `on_bad_row` says
    to skip those, and where nothing is left to learn from.
    """

    def __init__(
        self,
        config: RewardModelConfig,
        task: TaskConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        heldout: ProblemSet,
        positions: int | None,
        seed: int,
    ) -> None:
        self.dropped = Counter[str]()
        most = min(config.max_length, positions or config.max_length)
        files = [_File(one, config, task, tokenizer, most) for one in config.datasets]
        held = heldout.questions()
        keys = array("q")
        for file in files:
            keys += file.read(held, self.dropped)
        both: Sequence[Judgement] = Joined([Selection(f, f.places) for f in files])
        wanted = config.heldout_size or min(512, max(1, len(keys) // 10))
        kept_out, order = set[int](), sorted(set(keys))
        random.Random(f"{seed}/heldout").shuffle(order)
        sizes, count = Counter(keys), 0
        while count < wanted and order:
            kept_out.add(order.pop())
            count = sum(sizes[key] for key in kept_out)
        inside = array("q", (i for i, key in enumerate(keys) if key not in kept_out))
        outside = array("q", (i for i, key in enumerate(keys) if key in kept_out))
        if not inside:
            raise ConfigError(
                f"reward_model.datasets: {len(keys)} judgements can be used (left out: "
                f"{dict(self.dropped)}), of which reward_model.heldout_size keeps {len(outside)} "
                "apart: none is left to learn from"
            )
        self.train = shuffled(Selection(both, inside), random.Random(f"{seed}/train"))
        self.heldout = Selection(both, outside)


def check_preferences(config: RewardModelConfig, task: TaskConfig) -> None:
    """Raises ConfigError where a file has a row that is no judgement of the kind needed, as far as
    that can be known without the model's tokenizer."""
    for dataset, setting in files_of(config.datasets, "reward_model.datasets"):
        file = _Rows(dataset, config, task, setting)
        check_rows(file.rows, file.parse, dataset.on_bad_row)


class _Rows:
    """What the rows of a file say: responses up to `end`, which ends them, if that is known."""

    def __init__(
        self,
        dataset: PreferencesConfig,
        config: RewardModelConfig,
        task: TaskConfig,
        setting: str = "path",
        end: str | None = None,
    ) -> None:
        self.dataset, self.config, self.task, self.end = dataset, config, task, end
        self.rows, self.template = open_rows(dataset.path, setting), task.prompt_template

    def parse(self, row: Row) -> _Read:
        """What the row says; RowError where that is no judgement, or none of the kind needed."""
        dataset = self.dataset
        if dataset.chosen_field in row:
            if self.config.objective == "pointwise":
                raise RowError("a pair, and pointwise learning needs one response with a label")
            return self._chosen_and_rejected(row)
        messages = self._prompt(row)
        said = response_text(lookup(row, dataset.completion_field, "completion_field"))
        if dataset.score_field is not None:
            value = _number(lookup(row, dataset.score_field, "score_field"), "the score")
            if self.config.objective == "pointwise":
                raise RowError("a score, and pointwise learning needs labels: unset score_field")
        elif self.config.objective == "pairwise":
            raise RowError(
                f'no "{dataset.chosen_field}": pairs need it, or score_field, by which the best '
                "and the worst response of a prompt are found"
            )
        else:
            value = _number(lookup(row, dataset.label_field, "label_field"), "the label")
            if value not in (0, 1):
                raise RowError(f"the label is {value}: expected true, false, 1 or 0")
        return self._read(messages, (said,), value)

    def _chosen_and_rejected(self, row: Row) -> _Read:
        dataset = self.dataset
        both = [
            lookup(row, dataset.chosen_field, "chosen_field"),
            lookup(row, dataset.rejected_field, "rejected_field"),
        ]
        if all(isinstance(value, list) and len(value) > 1 for value in both):  # with their prompts
            one, other = (conversation(value, "a response") for value in both)
            if one[:-1] != other[:-1]:
                raise RowError("the two conversations differ before their last message")
            messages = question(both[0][:-1])
            both = [value[-1:] for value in both]
        else:
            messages = self._prompt(row)
        scores = [
            _mean(row[field]) if row.get(field) is not None else None
            for field in (dataset.chosen_scores_field, dataset.rejected_scores_field)
        ]
        better, worse = scores
        if better is None or worse is None:
            if dataset.min_margin:
                raise RowError(
                    f'no "{dataset.chosen_scores_field}" and "{dataset.rejected_scores_field}", '
                    "which min_margin compares: name them, or set min_margin = 0"
                )
            margin = None
        else:
            margin = better - worse
        first, second = map(response_text, both)
        return self._read(messages, (first, second), margin)

    def _prompt(self, row: Row) -> tuple[Message, ...]:
        key = prompt_key(row, self.dataset.prompt_field)
        return question(lookup(row, key, "prompt_field"))

    def _read(
        self, messages: tuple[Message, ...], said: tuple[str, ...], value: float | None
    ) -> _Read:
        if self.template == "chat":
            messages = with_system(messages, self.task.system_prompt)
        elif any(role != "system" for role, _ in messages[:-1]):
            raise RowError("a conversation of several turns needs task.prompt_template = 'chat'")
        if (end := self.end) is not None:
            said = tuple(before_end(text, end) for text in said)
        check_unicode(said)
        return _Read(messages, said, value)


class _File(_Rows):
    """The judgements of one file, by their places in `pairs`; rows are read when they are drawn."""

    def __init__(
        self,
        dataset: PreferencesConfig,
        config: RewardModelConfig,
        task: TaskConfig,
        tokenizer: PreTrainedTokenizerBase,
        most: int,
    ) -> None:
        super().__init__(dataset, config, task, end=str(tokenizer.eos_token))
        self.tokenizer, self.most = tokenizer, most
        self.pairs: list[tuple[int, ...]] = []
        """The row of a judgement, or those of the better and of the worse sample."""
        self.places = array("q")

    def read(self, held: set[int], dropped: Counter[str]) -> array[int]:
        """Finds the judgements that can be used; returns what they ask, as hashes."""
        keys, leaked = array("q"), array("q")
        best = dict[int, tuple[float, int]]()
        worst = dict[int, tuple[float, int]]()
        for number, row in usable(self.rows, self.parse, self.dataset.on_bad_row):
            if {row.key, hashed(question_key(row.messages[-1:]))} & held:
                leaked.append(number)
            elif self.dataset.score_field is None or len(row.responses) == 2:
                self._keep(row, (number,), keys, dropped)
            else:
                assert row.value is not None  # parse
                if row.key not in best or row.value > best[row.key][0]:
                    best[row.key] = row.value, number
                if row.key not in worst or row.value < worst[row.key][0]:
                    worst[row.key] = row.value, number
        warn(self.rows, leaked, HELD)
        for key in best:
            numbers = best[key][1], worst[key][1]
            self._keep(self._pair(*numbers), numbers, keys, dropped)
        return keys

    def _keep(
        self, row: _Read, numbers: tuple[int, ...], keys: array[int], dropped: Counter[str]
    ) -> None:
        if (reason := self._fault(row)) is not None:
            dropped[reason] += 1
            return
        self.places.append(len(self.pairs))
        self.pairs.append(numbers)
        keys.append(row.key)

    def _fault(self, row: _Read) -> str | None:
        """Why a judgement is not learnt from."""
        if len(row.responses) == 2 and row.value is not None:
            if row.value == 0:
                return EQUAL
            if row.value <= self.dataset.min_margin:
                return MARGIN
        if len({self._judged(text) for text in row.responses}) < len(row.responses):
            return SAME
        ratio = self.dataset.max_length_ratio
        texts = (*(content for _, content in row.messages), *row.responses)
        # Few have to be tokens for this: a text has at least a byte for each, but for some marks.
        if ratio is None and sum(len(text.encode()) for text in texts) + 256 <= self.most:
            return None
        made = self._encode(row)
        lengths = sorted(map(len, made.responses))
        if len(made.prompt) + lengths[-1] > self.most:
            return LONG
        return LENGTH if ratio is not None and lengths[-1] > ratio * lengths[0] else None

    def __getitem__(self, place: int) -> Judgement:
        numbers = self.pairs[place]
        row = self._pair(*numbers) if len(numbers) == 2 else self.parse(self.rows[numbers[0]])
        return self._encode(row)

    def _pair(self, better: int, worse: int) -> _Read:
        """Two samples of a prompt."""
        one, other = (self.parse(self.rows[number]) for number in (better, worse))
        assert one.value is not None
        assert other.value is not None
        return _Read(one.messages, one.responses + other.responses, one.value - other.value)

    def _encode(self, row: _Read) -> Judgement:
        prompt = render_prompt(row.messages, self.template, self.tokenizer)
        start: list[int] = []
        responses = []
        for text in row.responses:
            said = self._judged(text)
            if self.config.part == "response" and opens_think(prompt):
                said = said.removeprefix("<think>").lstrip("\n")
            start, ids = encode_scored(self.tokenizer, prompt, said, self.template)
            responses.append(ids)
        single = len(responses) == 1 and row.value is not None
        return Judgement(start, tuple(responses), float(row.value or 0.0) if single else 1.0)

    def _judged(self, response: str) -> str:
        """The part of a response that is judged."""
        return summary(response) if self.config.part == "summary" else response


def _number(value: Any, what: str) -> float:
    found = plain(value)
    if not isinstance(found, bool | int | float) or found != found:
        raise RowError(f"{what} is {shown(value)}: expected a number")
    return float(found)


def _mean(value: Any) -> float:
    """A score, or the mean of those of several judgements."""
    if isinstance(value, list):
        if not value:
            raise RowError("a list of scores is empty")
        return fmean(_number(one, "a score") for one in value)
    return _number(value, "the score")
