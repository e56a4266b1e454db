"""Which language words are in: by their script, and by py3langid where languages share one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import islice
from typing import Any

from r1train.config.schema import ConfigError
from r1train.rewards.words import Word, words_of

_WRITTEN_IN = {
    ("Latin",): "en af az bs ca cs cy da de eo es et eu fi fo fr fy ga gl ha hr ht hu id ig is it "
    "jv la lb lt lv mg ms mt nl nn no nso oc pl pt qu ro rw sk sl sn so sq st sv sw tk tl tr uz vi "
    "wa xh yo zu",
    ("Cyrillic",): "ru uk be bg mk kk ky mn ba tt tg",
    ("Cyrillic", "Latin"): "sr",
    ("Arabic",): "ar fa ur ps sd ug",
    ("Devanagari",): "hi mr ne sa",
    ("Han",): "zh yue wuu",
    ("Han", "Hiragana", "Katakana"): "ja",
    ("Hangul",): "ko",
    ("Bengali",): "bn as",
    ("Hebrew",): "he yi",
    ("Greek",): "el",
    ("Armenian",): "hy",
    ("Georgian",): "ka",
    ("Gurmukhi",): "pa",
    ("Gujarati",): "gu",
    ("Oriya",): "or",
    ("Tamil",): "ta",
    ("Telugu",): "te",
    ("Kannada",): "kn",
    ("Malayalam",): "ml",
    ("Sinhala",): "si",
    ("Ethiopic",): "am ti",
    ("Thai",): "th",
    ("Lao",): "lo",
    ("Khmer",): "km",
    ("Myanmar",): "my",
    ("Tibetan",): "bo dz",
}
"""Codes of languages by the scripts they are written in, the most frequent first."""
SCRIPTS = {name: scripts for scripts, names in _WRITTEN_IN.items() for name in names.split()}
"""The scripts of each language that is known, by its ISO 639 code."""
_NAMES = {
    "english": "en", "chinese": "zh", "mandarin": "zh", "japanese": "ja", "korean": "ko",
    "german": "de", "french": "fr", "spanish": "es", "portuguese": "pt", "italian": "it",
    "russian": "ru", "arabic": "ar", "hindi": "hi", "英语": "en", "英文": "en", "中文": "zh",
}  # fmt: skip
_SHARED = ("Latin", "Cyrillic", "Arabic", "Devanagari")
"""Scripts of which words alone do not say the language."""
_FIRST = {
    script: names.split()[0]
    for scripts, names in reversed(_WRITTEN_IN.items())
    for script in scripts
}
"""The language that words of a script are taken for where nothing says more."""
FEWEST_WORDS, MOST_WORDS = 8, 24
"""Of a window that the library is asked about; fewer say too little."""
MOST_WINDOWS = 256
MOST_READ = 200
"""Words of a question that its language is told by: the library's certainty falls with more."""
UNLIKELY = 0.003
"""Probability of the target below which a window is in another language. Over windows of 8 and more
words, those of English technical prose and of number words had at least 0.013, those of German,
French and Spanish at most 0.0002."""


def language_code(name: object) -> str | None:
    """The code of a language that `name` names: "en", "zh-CN", "English"; None where it names none
    (a programming language, say)."""
    if not isinstance(name, str):
        return None
    plain = name.strip().casefold()
    code = _NAMES.get(plain, plain.replace("_", "-").split("-")[0])
    return code if code in SCRIPTS else None


def detect(text: str) -> str | None:
    """The language of most words of `text`, of those that are no notation if there are such; None
    where it has no words."""
    words = list(islice(words_of(text), MOST_READ))
    counts = Counter[str]()
    for word in [word for word in words if word.notation == "no"] or words:
        counts[word.script] += word.weight
    if (counts["Hiragana"] + counts["Katakana"]) * 4 > counts["Han"] > 0:
        counts["Hiragana"] += counts.pop("Han")  # Japanese is written in both
    if not counts:
        return None
    script = max(counts, key=lambda name: counts[name])
    if script not in _SHARED:
        return _FIRST.get(script)
    found = _chances(word.text for word in words if word.script == script)
    chances = {name: chance for name, chance in found.items() if script in SCRIPTS.get(name, ())}
    likely = max(chances, key=lambda name: chances[name])
    return likely if chances[likely] >= 0.5 else _FIRST[script]


def in_language(words: Sequence[Word], language: str) -> int:
    """How many of the words are in `language`, by their weight."""
    scripts = SCRIPTS[language]
    own = [word for word in words if word.script in scripts]
    total = sum(word.weight for word in own)
    if not any(script in _SHARED for script in scripts):
        return total
    for window in _windows(own):
        chances = _chances(word.text for word in window) if len(window) >= FEWEST_WORDS else {}
        if chances.get(language, 1.0) < UNLIKELY:
            total -= sum(word.weight for word in window)
    return total


def _windows(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """Runs of words that begin where a sentence does, unless it is short or long."""
    most = max(MOST_WORDS, len(words) // MOST_WINDOWS)
    start = 0
    for place, word in enumerate(words):
        length = place - start
        enough = length >= FEWEST_WORDS and len(words) - place >= FEWEST_WORDS
        if (length >= most or word.starts_sentence) and enough:
            yield words[start:place]
            start = place
    yield words[start:]


def _chances(words: Iterable[str]) -> dict[str, float]:
    return dict(_identifier().rank(" ".join(words)))


@cache
def _identifier() -> Any:
    check_installed()
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def check_installed() -> None:
    """ConfigError where the library is not there."""
    if find_spec("py3langid") is None:
        raise ConfigError(
            "languages of one script are told apart by py3langid, which is not installed: "
            "pip install 'r1kernels[language]'"
        )
