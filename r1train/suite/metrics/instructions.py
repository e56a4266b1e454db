"""IF-Eval by its authors' checkers (Zhou et al. 2023, arXiv 2311.07911), as lm-eval ships them."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from statistics import fmean
from typing import TYPE_CHECKING, Any

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.suite.metrics.base import MetricBase, Response, Score

if TYPE_CHECKING:
    from collections.abc import Iterator

    from r1train.suite.specs import Benchmark

_MODULES = ("lm_eval", "nltk", "langdetect", "immutabledict")


class InstructionMetric(MetricBase):
    """1 where a response follows all instructions of its prompt (prompt-strict)."""

    def __init__(self, benchmark: Benchmark, config: Config) -> None:
        super().__init__(benchmark, config)
        missing = [name for name in _MODULES if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"{benchmark.title}: {', '.join(missing)}: not installed; its checkers need the "
                'extra "suite": pip install "r1kernels[suite]"'
            )
        with _no_downloads():
            from langdetect import DetectorFactory
            from lm_eval.tasks.ifeval import utils
        DetectorFactory.seed = 0  # or a language is guessed anew each time
        self.utils: Any = utils

    def __call__(self, responses: Sequence[Response]) -> list[Score]:
        return [self._score(one) for one in responses]

    def figures(self, responses: Sequence[Response], scores: Sequence[Score]) -> dict[str, float]:
        """The authors' other three: a loose response may be without its first or last line, or
        without asterisks."""
        strict, loose = ([score.detail[name] for score in scores] for name in ("followed", "loose"))
        return {
            "instruction_strict": fmean(one for each in strict for one in each),
            "prompt_loose": fmean(map(all, loose)),
            "instruction_loose": fmean(one for each in loose for one in each),
        }

    def _score(self, response: Response) -> Score:
        asked = response.question.reference
        prompt = self.utils.InputExample(
            key=0,
            instruction_id_list=asked["instruction_id_list"],
            prompt=response.question.text,
            kwargs=asked["kwargs"],
        )
        try:
            with _same_draws(response.question.id):
                strict = self.utils.test_instruction_following_strict(prompt, response.summary)
            with _same_draws(response.question.id):
                loose = self.utils.test_instruction_following_loose(prompt, response.summary)
        except LookupError as error:
            raise ConfigError(
                f"{self.benchmark.title}: counting sentences, or words in capitals, needs nltk's "
                "punkt_tab, which is not here: python -m nltk.downloader punkt_tab"
            ) from error
        followed, loosely = (
            [bool(one) for one in found.follow_instruction_list] for found in (strict, loose)
        )
        return Score(float(all(followed)), {"followed": followed, "loose": loosely})


@contextmanager
def _same_draws(question: str) -> Iterator[None]:
    """The checkers draw what they think is missing: of the published questions, some count "#" or
    "!", for which they take any letter. It is the same one for all responses to a question."""
    state = random.getstate()
    random.seed(question)
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _no_downloads() -> Iterator[None]:
    """The module of the checkers downloads nltk's punkt_tab when it is imported: not from here."""
    import nltk

    download, nltk.download = nltk.download, lambda *_, **__: False
    try:
        with redirect_stdout(io.StringIO()):  # it says that it had downloaded it
            yield
    finally:
        nltk.download = download
