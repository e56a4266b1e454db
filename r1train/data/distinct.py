"""Which rows ask what no other does: files of any size are compared by hashes of eight bytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from r1train.data.fields import Message
from r1train.data.sources.base import Rows
from r1train.data.usable import warn


def _numbers() -> array[int]:
    return array("q")


@dataclass
class Index:
    """Rows of a file that can be used, with hashes of what they ask and of the answers."""

    rows: Rows
    numbers: array[int] = field(default_factory=_numbers)
    questions: array[int] = field(default_factory=_numbers)
    answers: array[int] = field(default_factory=_numbers)

    def add(self, number: int, question: str, answer: str) -> None:
        self.numbers.append(number)
        self.questions.append(hashed(question))
        self.answers.append(hashed(answer))


HELD = "questions that are held out are left out of training"


class Asked:
    """Questions that have been met; `known` are hashes."""

    def __init__(self, known: NDArray[np.int64]) -> None:
        self.known, self.new = np.sort(known), set[int]()

    def add(self, question: str) -> bool:
        """Whether the question is a new one."""
        key = hashed(question)
        place = int(np.searchsorted(self.known, key))
        if key in self.new or (place < len(self.known) and self.known[place] == key):
            return False
        self.new.add(key)
        return True


def question_key(messages: Sequence[Message]) -> str:
    """What makes two questions the same: all that is asked, however it is spaced, and whatever the
    system message."""
    said = (content for role, content in messages if role != "system")
    return " ".join(" ".join(said).split())


def hashed(text: str) -> int:
    """Eight bytes that two different texts of ten million share once in 400,000 times."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), signed=True)


def questions_of(indexes: Iterable[Index]) -> NDArray[np.int64]:
    """Hashes of everything that is asked."""
    found = [np.frombuffer(index.questions, np.int64) for index in indexes]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def distinct(indexes: Sequence[Index], held: NDArray[np.int64]) -> list[array[int]]:
    """Of each index, the rows that are the first to ask what is not in `held`.

    The others are left out, with a warning that says which they are.
    """
    if not indexes:
        return []
    questions = questions_of(indexes)
    answers = np.concatenate([np.frombuffer(index.answers, np.int64) for index in indexes])
    _, first, group = np.unique(questions, return_index=True, return_inverse=True)
    leaked = np.isin(questions, held)
    later = (first[group] != np.arange(len(questions))) & ~leaked
    differs = answers != answers[first[group]]
    kept, start = [], 0
    for index in indexes:
        numbers = np.frombuffer(index.numbers, np.int64)
        own = slice(start, start := start + len(numbers))
        for chosen, what in (
            (later & ~differs, "repeated questions are left out"),
            (later & differs, "repeated questions with another answer: the first answer is kept"),
            (leaked, HELD),
        ):
            warn(index.rows, array("q", numbers[chosen[own]].tobytes()), what)
        kept.append(array("q", numbers[~(later | leaked)[own]].tobytes()))
    return kept
