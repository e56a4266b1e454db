"""What to say to a prompt, as tokens: what the supervised phase learns from.

A file's prompts are rendered as those of problems are, so that RL starts from what was learnt. What
is said comes after them as the file has it, and the end-of-sequence token after that: a chat
template that drops the thoughts of earlier turns would drop what is to be learnt.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from r1train.config.schema import ConfigError
from r1train.config.sft import DemonstrationsConfig, SFTConfig
from r1train.config.stages import files_of
from r1train.config.task import TaskConfig
from r1train.data.distinct import HELD, hashed, question_key
from r1train.data.epochs import draw
from r1train.data.fields import (
    Message,
    before_end,
    check_unicode,
    conversation,
    lookup,
    prompt_key,
    question,
    response_text,
    shown,
)
from r1train.data.mixture import largest
from r1train.data.problems import ProblemSet
from r1train.data.prompts import REPLACED, opens_think, render_prompt, with_system
from r1train.data.selection import Joined, Selection, shuffled
from r1train.data.sources import open_rows
from r1train.data.sources.base import Row, RowError
from r1train.data.usable import check_rows, usable, warn


@dataclass(frozen=True)
class Demonstration:
    """A prompt and what follows it."""

    where: str
    """What a message calls it."""
    prompt: list[int]
    completion: list[int]
    """Tokens up to and with the end of the sequence."""
    learned: list[bool]
    """Of each token of the completion: whether the loss counts it."""


class Demonstrations(Protocol):
    """Demonstrations by step."""

    steps: int
    """How many batches there are."""

    def batch(self, step: int) -> Sequence[Demonstration]:
        """Those of a step, counted from 0. They follow from the seed: nothing else is kept."""


class RecordedDemonstrations:
    """Demonstrations of files, epoch after epoch, each in an order of its own.

    `positions` is how many tokens the model takes, if it has a limit. Those of questions that are
    in `heldout` are left out, with a warning. Raises ConfigError where a file has a row that cannot
    be used, unless its `on_bad_row` says to skip those.
    """

    def __init__(
        self,
        config: SFTConfig,
        task: TaskConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        heldout: ProblemSet,
        positions: int | None,
        seed: int,
    ) -> None:
        held = heldout.questions()
        self.config, self.seed = config, seed
        files = [_File(dataset, task, tokenizer, held, positions) for dataset in config.datasets]
        whole = [
            shuffled(file.read(), random.Random(f"{seed}/{i}")) for i, file in enumerate(files)
        ]
        given = [dataset.weight for dataset in config.datasets]
        counts = largest(given, dict(enumerate(map(len, whole))))
        self.demonstrations = Joined([w[:n] for w, n in zip(whole, counts, strict=True)])
        self.steps = config.steps(len(self))

    def __len__(self) -> int:
        return len(self.demonstrations)

    def batch(self, step: int) -> list[Demonstration]:
        size, examples = self.config.batch_size, self.config.examples(len(self))
        left = size if examples is None else min(size, examples - step * size)
        return draw(self.demonstrations, size, step + 1, self.seed)[:left]


def conversations(
    dataset: DemonstrationsConfig,
    task: TaskConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    heldout: ProblemSet,
    positions: int | None,
) -> Sequence[tuple[Message, ...]]:
    """The demonstrations of a file as messages: those that `RecordedDemonstrations` would take."""
    file = _File(dataset, task, tokenizer, heldout.questions(), positions)
    return Selection(_Messages(file), file.read().numbers)


def check_demonstrations(
    datasets: Sequence[DemonstrationsConfig], task: TaskConfig, key: str
) -> None:
    """Raises ConfigError where a file has a row that is no demonstration, as far as that can be
    known without the model's tokenizer; `key` is the option that has the datasets."""
    for dataset, setting in files_of(datasets, key):
        file = _Conversations(dataset, task, setting)
        check_rows(file.rows, file.messages, dataset.on_bad_row)


class _Messages:
    """The conversations of a file, by the numbers of its rows."""

    def __init__(self, file: _File) -> None:
        self.file = file

    def __getitem__(self, number: int) -> tuple[Message, ...]:
        return self.file.messages(self.file.rows[number])


class _Conversations:
    """What the rows of a file say: up to `end`, which ends what the assistant does, if that is
    known."""

    def __init__(
        self,
        dataset: DemonstrationsConfig,
        task: TaskConfig,
        setting: str = "path",
        end: str | None = None,
    ) -> None:
        self.dataset, self.end = dataset, end
        self.rows, self.template = open_rows(dataset.path, setting), task.prompt_template
        own = dataset.system_prompt
        self.system = task.system_prompt if own is None else own

    def messages(self, row: Row) -> tuple[Message, ...]:
        """The conversation of a row, which the assistant's message ends."""
        dataset = self.dataset
        if dataset.prompt_field is None and (value := row.get(dataset.messages_field)) is not None:
            if not isinstance(value, list) or not value:
                raise RowError(f'"{dataset.messages_field}" is {shown(value)}: expected messages')
            messages = conversation(value, f'"{dataset.messages_field}"')
            question(value[:-1])
        else:
            key = prompt_key(row, dataset.prompt_field)
            field = dataset.completion_field or "completion"
            said = response_text(lookup(row, field, "completion_field"))
            messages = (*question(lookup(row, key, "prompt_field")), ("assistant", said))
        if (end := self.end) is not None:
            messages = tuple(
                (role, before_end(text, end) if role == "assistant" else text)
                for role, text in messages
            )
        role, said = messages[-1]
        if role != "assistant":
            raise RowError(f"the last message is the {role}'s: expected one of the assistant")
        if not said.strip():
            raise RowError("the assistant says nothing")
        check_unicode(content for _, content in messages)
        first = self._learnt(messages)[0]
        if "user" not in [role for role, _ in messages[:first]]:
            raise RowError(
                "the assistant speaks before the user, so that this has no prompt: leave the "
                'message out, or learn the last one alone (learned_turns = "last")'
            )
        if self.template == "chat":
            return with_system(messages, self.system)
        if any(role != "system" for role, _ in messages[:-2]):
            raise RowError("a conversation of several turns needs task.prompt_template = 'chat'")
        return messages

    def _learnt(self, messages: Sequence[Message]) -> list[int]:
        """Which messages the loss is of."""
        spoken = [i for i, (role, _) in enumerate(messages) if role == "assistant"]
        return spoken[-1:] if self.dataset.learned_turns == "last" else spoken


class _File(_Conversations):
    """The demonstrations of one file, by the numbers of its rows."""

    def __init__(
        self,
        dataset: DemonstrationsConfig,
        task: TaskConfig,
        tokenizer: PreTrainedTokenizerBase,
        held: Set[int],
        positions: int | None,
    ) -> None:
        super().__init__(dataset, task, end=str(tokenizer.eos_token))
        self.tokenizer, self.positions, self.held = tokenizer, positions, held

    def read(self) -> Selection[Demonstration]:
        """Every row that can be used."""
        numbers, replaced, leaked = array("q"), array("q"), array("q")
        for number, messages in usable(self.rows, self.check, self.dataset.on_bad_row):
            if self._leaks(messages):
                leaked.append(number)
                continue
            numbers.append(number)
            if messages[0][0] == "system" and self.template != "chat":
                replaced.append(number)
        warn(self.rows, replaced, REPLACED)
        warn(self.rows, leaked, HELD)
        if not numbers:
            raise ConfigError(f"{self.rows.path}: all demonstrations are of held-out questions")
        return Selection(self, numbers)

    def __getitem__(self, number: int) -> Demonstration:
        return self._encode(
            self._parts(self.messages(self.rows[number])), self.rows.where([number])
        )

    def check(self, row: Row) -> tuple[Message, ...]:
        """The conversation of a row; RowError where it is no demonstration, or has too many
        tokens."""
        messages = self.messages(row)
        parts, limit = self._parts(messages), self.positions
        # Few texts have to be tokens for this: those have at least a byte each, but for some marks.
        if limit is not None and sum(len(text.encode()) for text, _ in parts) + 16 > limit:
            made = self._encode(parts, "")
            length = len(made.prompt) + len(made.completion)
            if length > limit:
                raise RowError(f"it has {length} tokens, and the model {limit} positions")
        return messages

    def _leaks(self, messages: Sequence[Message]) -> bool:
        """Whether what is learnt answers a held-out question: all that comes before an answer, or
        the message before it alone."""
        return any(
            hashed(question_key(asked)) in self.held
            for turn in self._learnt(messages)
            for asked in (messages[:turn], messages[turn - 1 : turn])
        )

    def _parts(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The texts of a conversation one after the other, the prompt first, and whether each is
        learnt."""
        return list(self._turns(messages, self._learnt(messages)))

    def _turns(
        self, messages: Sequence[Message], spoken: Sequence[int]
    ) -> Iterator[tuple[str, bool]]:
        end, before = str(self.tokenizer.eos_token), self._render(messages[: spoken[0]])
        yield before, False
        for turn, following in zip(spoken, [*spoken[1:], None], strict=True):
            said = messages[turn][1]
            if opens_think(before):
                said = said.removeprefix("<think>").lstrip("\n")
            if following is None:
                yield said + end, True
                return
            whole = self._render(messages[:following])
            if not whole.startswith(before + said):
                raise RowError(
                    "the chat template does not repeat the assistant's earlier turns as they stand "
                    '(some drop their thoughts), so they cannot be learnt: learned_turns = "last"'
                )
            between = whole.removeprefix(before + said)
            mark = end if between.startswith(end) else ""
            yield said + mark, True
            yield between.removeprefix(mark), False
            before = whole

    def _render(self, messages: Sequence[Message]) -> str:
        try:
            return render_prompt(messages, self.template, self.tokenizer)
        except ConfigError as error:  # the template refuses the roles of this row
            raise RowError(str(error)) from None

    def _encode(self, parts: Sequence[tuple[str, bool]], where: str) -> Demonstration:
        (prompt, _), *said = parts
        completion: list[int] = []
        learned: list[bool] = []
        for text, counts in said:
            ids = self._ids(text, add_special_tokens=False)
            completion += ids
            learned += [counts] * len(ids)
        start = self._ids(prompt, add_special_tokens=self.template != "chat")
        return Demonstration(where, start, completion, learned)

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids
