"""Completions of a benchmark's questions, kept as they come: what is broken off goes on there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from r1train.config.schema import ConfigError
from r1train.config.sections import Config
from r1train.data.encode import decode_completions
from r1train.data.fields import Message
from r1train.data.prompts import render_prompt, with_system
from r1train.engine.base import Engine, Request, Sampling
from r1train.model.limits import check_sequences, positions
from r1train.run.writing import writing
from r1train.seeds import derive_seed
from r1train.suite.questions import Question
from r1train.suite.specs import Benchmark


@dataclass(frozen=True)
class Sampled:
    """The k completions of a question."""

    id: str
    prompt: str
    """As the model saw it."""
    completions: list[str]
    tokens: list[int]
    """Of each completion."""
    finished: list[bool]
    """False where the limit cut a completion off."""


@dataclass(frozen=True)
class Subject:
    """The model that is asked, and how."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    config: Config
    template: str
    """As in `task.prompt_template`."""
    system: str | None
    """System message of a chat: None for R1-Zero's instruction, "" for none."""

    def prompt(self, text: str) -> str:
        """The prompt of what a user says."""
        messages: tuple[Message, ...] = (("user", text),)
        if self.template == "chat":
            messages = with_system(messages, self.system)
        return render_prompt(messages, self.template, self.tokenizer)

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """A chat template writes its special tokens itself."""
        special = self.template != "chat"
        ids: list[list[int]] = self.tokenizer(list(prompts), add_special_tokens=special)[
            "input_ids"
        ]
        check_sequences(self.model, self.tokenizer, ids)
        return ids


def sampling_of(benchmark: Benchmark, subject: Subject, prompts: Sequence[str]) -> Sampling:
    """How completions are drawn: none longer than the model has positions for.

    Raises ConfigError where the prompts leave no room, or less than `suite.max_tokens` asks for.
    """
    suite, limit = subject.config.suite, positions(subject.model)
    wanted = suite.max_tokens or benchmark.max_tokens
    longest = max(map(len, subject.encode(prompts)))
    room = wanted if limit is None else limit - longest
    if room < 1 or (suite.max_tokens is not None and room < wanted):
        raise ConfigError(
            f"suite.max_tokens = {wanted}: the model has {limit} positions, and the longest prompt "
            f"of {benchmark.title} {longest} tokens: "
            + (f"at most {room} are left" if room > 0 else "it cannot be asked")
        )
    return Sampling(
        max_new_tokens=min(room, wanted), temperature=suite.temperature, top_p=suite.top_p
    )


def sample(
    subject: Subject,
    benchmark: Benchmark,
    questions: Sequence[Question],
    sampling: Sampling,
    k: int,
    path: Path,
    advance: Callable[[dict[str, float]], None],
) -> list[Sampled]:
    """k completions of every question. Those that `path` has are not sampled again.

    A completion depends on the weights, the prompt, the seed and its number alone, so that what
    goes on after a break ends as it would have. `advance` is called for every finished question.
    """
    there = {one.id: one for one in read(path)}
    waiting = [question for question in questions if question.id not in there]
    for _ in range(len(questions) - len(waiting)):
        advance({})
    size = max(1, subject.config.rollout.batch_size // k)
    for start in range(0, len(waiting), size):
        part = waiting[start : start + size]
        for one in _sample(subject, benchmark, part, sampling, k):
            there[one.id] = one
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.writelines(_line(there[question.id]) for question in part)
        for question in part:
            advance({"tokens": fmean(there[question.id].tokens)})
    return [there[question.id] for question in questions]


def read(path: Path) -> Iterator[Sampled]:
    """The questions that were sampled; a line that a crash has torn is none."""
    fields = Sampled.__dataclass_fields__
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        try:
            record = json.loads(line)
            yield Sampled(**{name: record[name] for name in fields})
        except (ValueError, KeyError, TypeError):
            continue


def _line(sampled: Sampled) -> str:
    return json.dumps(asdict(sampled), ensure_ascii=False) + "\n"


def _sample(
    subject: Subject,
    benchmark: Benchmark,
    questions: Sequence[Question],
    sampling: Sampling,
    k: int,
) -> list[Sampled]:
    prompts = [subject.prompt(question.prompt(benchmark.prompt)) for question in questions]
    requests = [
        Request(ids, k, derive_seed(subject.config.seed, benchmark.name, question.id))
        for ids, question in zip(subject.encode(prompts), questions, strict=True)
    ]
    rollout = subject.engine.generate(requests, sampling)
    texts = decode_completions(subject.tokenizer, rollout.completion_ids)
    groups = [slice(i * k, (i + 1) * k) for i in range(len(questions))]
    return [
        Sampled(question.id, prompt, texts[group], rollout.lengths[group], rollout.finished[group])
        for question, prompt, group in zip(questions, prompts, groups, strict=True)
    ]
