"""A procedural task: problems without end, and solutions to learn from."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar


class Task(ABC):
    """Makes problems from its parameters, which are the fields of a dataclass.

    An entry is what reasoning-gym's datasets give: a question, an answer (None: it cannot be
    verified) and metadata, among it the `language` of the question.
    """

    words: ClassVar[tuple[str, ...]]
    """All words that questions and solutions are made of, parted by spaces."""

    @abstractmethod
    def entry(self, rng: random.Random) -> dict[str, Any]:
        """A problem, which may come again."""

    def entries(self, seed: str) -> Iterator[dict[str, Any]]:
        """Problems without end, each from a generator of its own."""
        number = 0
        while True:
            yield self.entry(random.Random(f"{seed}/{number}"))
            number += 1
