"""One benchmark on a model: asked, scored and kept, in a folder of its own.

`settings.json` has what decides the completions, `samples.jsonl` a line for each question with its
completions, answers and scores, and `result.json` is there once all of it is finished.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from r1train.config.schema import RunError
from r1train.config.sections import Config
from r1train.data.response import summary
from r1train.engine.builtin import BuiltinEngine
from r1train.model.load import load_model
from r1train.report.console import CONSOLE, ProgressBar
from r1train.run.checksums import digest_of
from r1train.run.writing import replaced, writing
from r1train.suite.extraction import extract
from r1train.suite.metrics import JUDGED, metric_of
from r1train.suite.metrics.base import Response, Score
from r1train.suite.questions import Question, load
from r1train.suite.results import Result, summarize
from r1train.suite.sampling import Sampled, Subject, sample, sampling_of
from r1train.suite.specs import Benchmark

_LONGEST_REFERENCE = 4096
MOST_REASONS = 3
"""Of those why there is no verdict, that are told; `samples.jsonl` has them all."""
SAMPLES, SETTINGS, RESULT = "samples.jsonl", "settings.json", "result.json"


class NoVerdict(RunError):
    """Why no completion of a benchmark could be judged."""


class Asking:
    """Of a model whose benchmarks lie in `place`; it is loaded when the first has to be asked."""

    def __init__(self, config: Config, data: Path, place: Path, *, trained: bool) -> None:
        self.config, self.data, self.place, self.trained = config, data, place, trained

    @cached_property
    def model_digest(self) -> str:
        assert self.config.model.path is not None  # of an evaluation
        return digest_of(Path(self.config.model.path))

    @cached_property
    def subject(self) -> Subject:
        """A run is asked as it was trained; another model by its chat template, without a system
        message, as R1's authors advise."""
        config = self.config
        model, tokenizer = load_model(config)
        template, system = config.task.prompt_template, config.task.system_prompt
        if not self.trained:
            chat = getattr(tokenizer, "chat_template", None) is not None
            template, system = ("chat", "") if chat else ("plain", None)
        engine = BuiltinEngine.from_config(model, tokenizer, config.rollout)
        return Subject(model, tokenizer, engine, config, template, system)

    def result(self, benchmark: Benchmark) -> Result:
        """The result that is there and made with these settings, or a new one.

        Raises ConfigError where the benchmark cannot be asked, NoVerdict where none of its
        completions can be judged: what they said is kept.
        """
        suite, folder = self.config.suite, self.place / benchmark.name
        questions = load(benchmark, self.data, suite.limit)
        k = suite.k or benchmark.k
        sampling = self._sampling(benchmark, questions, k)
        settings = sampling | self._scoring(benchmark, questions)
        finished = Result.load(folder / RESULT)
        if finished and finished.settings == settings and not finished.unjudged:
            CONSOLE.print(f"{benchmark.title}: finished before", soft_wrap=True)
            return finished
        metric = metric_of(benchmark, self.config)  # something that it needs may be missing
        sampled = self._sampled(benchmark, questions, k, sampling)
        responses = [
            [_response(benchmark, question, one, i) for i in range(k)]
            for question, one in zip(questions, sampled, strict=True)
        ]
        flat = [response for group in responses for response in group]
        scored = metric(flat)
        scores = [scored[i : i + k] for i in range(0, len(scored), k)]
        _write_samples(folder / SAMPLES, sampled, responses, scores)
        tell_unjudged(benchmark, scored)
        found = summarize(
            *(benchmark, questions, sampled, responses, scores, metric.figures(flat, scored)),
            confidence=suite.confidence,
            settings=settings,
        )
        with writing(folder), replaced(folder / RESULT) as path:
            found.save(path)
        return found

    def earlier(self, benchmark: Benchmark) -> Result | None:
        """The result of this model that is there, whatever it was asked with."""
        found = Result.load(self.place / benchmark.name / RESULT)
        return found if found and found.settings["model"] == self.model_digest else None

    def _sampled(
        self,
        benchmark: Benchmark,
        questions: Sequence[Question],
        k: int,
        settings: dict[str, Any],
    ) -> list[Sampled]:
        prompts = [self.subject.prompt(one.prompt(benchmark.prompt)) for one in questions]
        sampling = sampling_of(benchmark, self.subject, prompts)
        if sampling.max_new_tokens < settings["max_tokens"]:
            fewer = f"at most {sampling.max_new_tokens} tokens: the model has positions for no more"
            CONSOLE.print(f"{benchmark.title}: {fewer}", soft_wrap=True)
        folder = self.place / benchmark.name
        _begin(folder, settings)
        with ProgressBar(benchmark.title, len(questions)) as bar:
            found = sample(
                self.subject, benchmark, questions, sampling, k, folder / SAMPLES, bar.advance
            )
        return found

    def _sampling(
        self, benchmark: Benchmark, questions: Sequence[Question], k: int
    ) -> dict[str, Any]:
        """What decides the completions."""
        suite, config = self.config.suite, self.config
        return {
            "model": self.model_digest,
            "prompts": _digest([[one.id, one.prompt(benchmark.prompt)] for one in questions]),
            "asked": [config.task.prompt_template, config.task.system_prompt, self.trained],
            "computed": [config.device, config.dtype, config.precision, config.rollout.dtype],
            "seed": config.seed,
            "k": k,
            "temperature": suite.temperature,
            "top_p": suite.top_p,
            "max_tokens": suite.max_tokens or benchmark.max_tokens,
        }

    def _scoring(self, benchmark: Benchmark, questions: Sequence[Question]) -> dict[str, Any]:
        """What decides the figures beside them."""
        judge = self.config.suite.judge
        return {
            "benchmark": _digest([asdict(benchmark), [asdict(question) for question in questions]]),
            "judge": [judge.url, judge.model] if benchmark.metric in JUDGED else None,
            "confidence": self.config.suite.confidence,
        }


def _response(benchmark: Benchmark, question: Question, one: Sampled, i: int) -> Response:
    said = one.completions[i]
    answer = extract(benchmark.extraction, said, one.prompt)
    return Response(question, summary(said, one.prompt), answer)


def tell_unjudged(benchmark: Benchmark, scores: Sequence[Score]) -> None:
    """Says how many have no verdict, and why. Raises NoVerdict where none has one."""
    failures = Counter(score.detail["failure"] for score in scores if score.value is None)
    if not failures:
        return
    count, first = failures.total(), failures.most_common(MOST_REASONS)
    reasons = [f"{times} × {reason}" for reason, times in first]
    if len(failures) > len(first):
        reasons.append(f"{count - sum(times for _, times in first)} for other reasons")
    told = f"no verdict on {count} of {len(scores)} completions: {'; '.join(reasons)}"
    if count == len(scores):
        raise NoVerdict(f"{told}: see to suite.judge.url, .model, .timeout and .max_tokens")
    CONSOLE.print(f"{benchmark.title}: {told}", soft_wrap=True, markup=False)


def _write_samples(
    path: Path,
    sampled: Sequence[Sampled],
    responses: Sequence[Sequence[Response]],
    scores: Sequence[Sequence[Score]],
) -> None:
    lines = [
        json.dumps(
            {
                **asdict(one),
                "reference": _short(group[0].question.reference),
                "answers": [response.answer for response in group],
                "scores": [score.value for score in given],
                "details": [score.detail for score in given],
            },
            ensure_ascii=False,
        )
        for one, group, given in zip(sampled, responses, scores, strict=True)
    ]
    with writing(path), replaced(path) as new:
        new.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _short(reference: Any) -> Any:
    """Test cases of a program, which may be megabytes, stay in the benchmark's own file."""
    return reference if len(json.dumps(reference)) <= _LONGEST_REFERENCE else None


def _begin(folder: Path, settings: dict[str, Any]) -> None:
    """Samples that were made with other settings are taken away."""
    path = folder / SETTINGS
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings, indent=1) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            for name in (SAMPLES, RESULT):
                (folder / name).unlink(missing_ok=True)
            with replaced(path) as new:
                new.write_text(text, encoding="utf-8")


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
