"""What of a benchmark is in the training data: whole n-grams of words, as R1's authors looked.

R1 was trained without any text that shares ten words in a row with a question or a solution of an
evaluation (arXiv 2501.12948, supplement: 10-grams). Words are compared without case and
punctuation; a Han character is a word, since Chinese has no spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

N = 10
_WORDS = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")


class Benchmarked:
    """The n-grams of a benchmark's questions, by which texts are looked through.

    A question of fewer words counts where a text has all of them in a row, unless they are fewer
    than half of n: such say too little to be known again.
    """

    def __init__(self, questions: Iterable[str], n: int = N) -> None:
        self.n = n
        self.owners: dict[int, list[int]] = {}
        self.lengths: set[int] = set()
        for number, question in enumerate(questions):
            words = words_of(question)
            length = min(n, len(words))
            if length < n / 2:
                continue
            self.lengths.add(length)
            for gram in set(_grams(words, length)):
                self.owners.setdefault(gram, []).append(number)

    def met(self, text: str) -> set[int]:
        """The numbers of the questions that share an n-gram with a text."""
        words = words_of(text)
        return {
            number
            for length in self.lengths
            for gram in _grams(words, length)
            for number in self.owners.get(gram, ())
        }

    def contaminated(self, texts: Iterable[str]) -> set[int]:
        """The numbers of the questions that are in any of the texts."""
        return set().union(*map(self.met, texts))

    def clean(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts that share nothing with the benchmark: what may be trained on."""
        return (text for text in texts if not self.met(text))


def words_of(text: str) -> list[str]:
    """Words of letters and digits, in one spelling."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def _grams(words: list[str], length: int) -> Iterator[int]:
    """Hashes of this process, which stand for millions of n-grams in little memory."""
    for start in range(len(words) - length + 1):
        yield hash(tuple(words[start : start + length]))
