"""Short texts with given words, in English or Chinese: a task without an answer to compare with.

    write cat tea moon without dog
    <think> cat 茶 moon </think> <answer> dear friend the tea the moon the cat thanks </answer>

What a reply is worth says `r1train.rewards.bilingual_reply`, by rule and as an annotator sees it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r1train.data.tasks.base import Task

if TYPE_CHECKING:
    from r1train.data.problems import Problem

TOPICS = {
    "en": (
        *("cat", "dog", "tea", "rice", "moon", "rain"),
        *("tree", "book", "door", "road", "fish", "bird"),
    ),
    "zh": ("猫", "狗", "茶", "米饭", "月亮", "雨", "树", "书", "门", "路", "鱼", "鸟"),
}
"""What texts are about; the same thing has the same place in either language."""
POLITE = {
    "en": ("please", "kindly", "thanks", "sincerely"),
    "zh": ("请", "麻烦", "谢谢", "此致"),
}
ASKED = {"en": ("write", "without"), "zh": ("写", "不要")}
ARTICLE = {"en": "the", "zh": "那"}
LANGUAGES = tuple(TOPICS)


@dataclass(frozen=True)
class BilingualReply(Task):
    """Requests for a text about `min_words` to `max_words` things, and not about another.

    Metadata: the `language` of the request, its `level`, which is the number of things, the
    `required` words and the `banned` one.
    """

    min_words: int = 2
    max_words: int = 4

    words = tuple(
        word
        for language in LANGUAGES
        for word in (*TOPICS[language], *POLITE[language], *ASKED[language], ARTICLE[language])
    )

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words < len(TOPICS["en"]):
            raise ValueError(
                f"min_words = {self.min_words}, max_words = {self.max_words}: expected "
                f"1 <= min_words <= max_words <= {len(TOPICS['en']) - 1}"
            )

    def entry(self, rng: random.Random) -> dict[str, Any]:
        level, language = rng.randint(self.min_words, self.max_words), rng.choice(LANGUAGES)
        *required, banned = rng.sample(TOPICS[language], level + 1)
        write, without = ASKED[language]
        return {
            "question": " ".join([write, *required, without, banned]),
            "answer": None,
            "metadata": {
                "language": language,
                "level": level,
                "required": required,
                "banned": banned,
            },
        }


def solve(
    problem: Problem,
    rng: random.Random,
    slip: bool,
    *,
    english_in_en: float = 1.0,
    english_in_zh: float = 0.0,
    polite: float = 0.0,
    repeat: float = 0.0,
) -> tuple[str, str]:
    """The things one by one as thoughts, and a text about them in an order of its own.

    A thought is in English with probability `english_in_en` where the request is, and with
    `english_in_zh` where that is in Chinese. Each polite word comes with probability `polite`, in
    front or behind; a thing is said twice with probability `repeat`. A slip forgets a thing, or
    says the banned one in its place.
    """
    asked, language = problem.metadata["required"], problem.metadata["language"]
    english = {"en": english_in_en, "zh": english_in_zh}[language]
    thoughts = [
        TOPICS["en" if rng.random() < english else "zh"][TOPICS[language].index(word)]
        for word in asked
    ]
    said = rng.sample(asked, len(asked))
    if slip:
        said[-1:] = rng.choice(([], [problem.metadata["banned"]]))
    said = [word for word in said for _ in range(1 + (rng.random() < repeat))]
    text = [part for word in said for part in (ARTICLE[language], word)]
    manners = [word for word in POLITE[language] if rng.random() < polite]
    before = rng.randint(0, len(manners))
    return " ".join(thoughts), " ".join([*manners[:before], *text, *manners[before:]])
