"""A row as a question with its reference answer: one way for every kind of file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from r1train.config.task import DatasetConfig
from r1train.data.fields import (
    PROMPT_FIELDS,
    Message,
    check_unicode,
    lookup,
    plain,
    prompt_key,
    question,
    shown,
)
from r1train.data.golds import final_answer, listed_answer
from r1train.data.sources.base import Number, Row, RowError
from r1train.verify import ANSWER_TYPES, AnswerType

ANSWER_FIELD, TYPE_FIELD = "answer", "answer_type"


@dataclass(frozen=True)
class Record:
    """What a row says."""

    messages: tuple[Message, ...]
    """The conversation, whose last message is the user's; a prompt that is text is one message."""
    answer: str
    """Empty where the data set has none."""
    answer_type: AnswerType
    columns: dict[str, Any] = field(default_factory=dict)
    """Every field by its name, for reward functions, but the prompt, the answer and its type where
    they have the names that they have by default."""

    @property
    def question(self) -> str:
        """The last message, which is the user's."""
        return self.messages[-1][1]


def record_of(row: Row, dataset: DatasetConfig, template: str) -> Record:
    """What the row says under the names that `dataset` gives its fields; RowError where it cannot
    be a problem. Templates other than "chat" ask one question, not a conversation."""
    key = prompt_key(row, dataset.prompt_field)
    messages = question(lookup(row, key, "prompt_field"))
    before = {role for role, _ in messages[:-1]}
    if template != "chat" and before - {"system"}:
        raise RowError(
            "a conversation of several turns needs task.prompt_template = 'chat'; it is "
            f"{template!r}"
        )
    kind = row.get(TYPE_FIELD)
    if kind is None:  # or null: a table has the field in all rows
        kind = dataset.answer_type
    if kind not in ANSWER_TYPES:
        raise RowError(f'"answer_type" is {shown(kind)}: expected one of {", ".join(ANSWER_TYPES)}')
    name = ANSWER_FIELD if dataset.answer_field is None else dataset.answer_field
    answer = _answer(lookup(row, name, "answer_field"), kind) if name else ""
    used = {TYPE_FIELD, *({key, name} & {*PROMPT_FIELDS, ANSWER_FIELD})}
    own = {name: value for name, value in row.items() if name not in used and value is not None}
    columns = {name: plain(value) for name, value in own.items()}
    return Record(messages, answer, kind, columns)


def _answer(value: Any, kind: AnswerType) -> str:
    if value is None:
        raise RowError("the answer is null: give the problem an answer, or leave the row out")
    if isinstance(value, dict):
        raise RowError(f"the answer is {shown(value)}: expected text, a number or a list")
    if isinstance(value, list) and kind not in ("set", "ordered"):
        raise RowError(
            f'the answer is the list {shown(value)}: add "answer_type": "set" (any order) or '
            '"ordered" to the row, or answer_type to the dataset; one answer is no list'
        )
    if isinstance(value, Number) and not math.isfinite(value.value):
        raise RowError(f"the answer is {value}, which no answer can be equal to")
    check_unicode([json.dumps(value, ensure_ascii=False, default=repr)])
    try:
        if isinstance(value, list):
            return listed_answer(value, kind)
        if isinstance(value, bool):
            return json.dumps(value)
        return final_answer(value, kind)
    except ValueError as error:
        raise RowError(str(error)) from None
