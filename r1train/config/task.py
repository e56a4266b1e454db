"""Which problems there are, and what prompts ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from r1train.config.schema import NonNegative, Section, Size
from r1train.verify import AnswerType

OnBadRow = Literal["error", "skip"]


@dataclass(frozen=True)
class DatasetConfig(Section, section="task.datasets"):
    """One source of problems: a generated dataset (`name`), or a file or folder (`path`)."""

    name: str | None = None
    """reasoning-gym dataset, such as "chain_sum", which brings its own verifier; or a task of our
    own, "bilingual_sum" or "bilingual_reply" (r1train/data/tasks)."""
    path: str | None = None
    """JSONL, Parquet or Arrow file, folder of such files or of `datasets`, or a pattern with *;
    its answers are verified by `r1train.verify`. Rows are read when they are drawn."""
    heldout_path: str | None = None
    """The held-out problems of `path`; unset: a random part of `path` is held out."""
    jsonl: str | None = None
    """Older name of `path`."""
    heldout_jsonl: str | None = None
    """Older name of `heldout_path`."""
    prompt_field: str | None = None
    """Key of the question, text or chat messages, such as "problem"; a path has dots, such as
    "extra.question" (unset: "prompt" or "question")."""
    answer_field: str | None = None
    """Key of the reference answer, such as "reward_model.ground_truth" (unset: "answer"); "" where
    there are none, to which "accuracy" does not apply."""
    answer_type: AnswerType = "auto"
    """How answers are compared on rows that give no "answer_type" of their own."""
    system_prompt: str | None = None
    """System message of this source's prompts (unset: task.system_prompt)."""
    on_bad_row: OnBadRow = "error"
    """What a row does that cannot be used, or whose prompt is too long for the model: "error" ends
    the run before it starts, naming all of them; "skip" leaves them out with a warning."""
    weight: NonNegative | None = None
    """Share of the problems that comes from this source, relative to the other weights (unset: 1;
    if train_size is unset too, files have a share by their size). With 0 there are none of it, and
    the others are those that they would be beside it."""
    params: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of what `name` generates (not size, not seed)."""

    def check(self) -> None:
        for older, name in (("jsonl", "path"), ("heldout_jsonl", "heldout_path")):
            both = getattr(self, older) is not None and getattr(self, name) is not None
            self.require(not both, older, f"is an older name of {name}: give only that")
            if getattr(self, older) is not None:
                object.__setattr__(self, name, getattr(self, older))
                object.__setattr__(self, older, None)
        one = (self.name is None) != (self.path is None)
        self.require(one, "name", "give exactly one of name and path")
        self.require(self.path is None or not self.params, "params", "a file takes none")
        unset = {"answer_type": "auto", "on_bad_row": "error"}
        for name in ("heldout_path", "prompt_field", "answer_field", *unset):
            given = getattr(self, name) != unset.get(name)
            self.require(not given or self.path is not None, name, "is for a file: give path")
        reserved = {"size", "seed"} & self.params.keys()
        self.require(not reserved, "params", "size and seed follow from task.train_size and seed")


@dataclass(frozen=True)
class TaskConfig(Section, section="task"):
    """Which problems are trained on and which are held out; the two never share a question."""

    datasets: tuple[DatasetConfig, ...] = (DatasetConfig(name="chain_sum"),)
    """Sources of problems, mixed by weight."""
    train_size: Size | None = None
    """Number of distinct training problems (unset: 4096, and of files all that is not held out)."""
    heldout_size: Size | None = None
    """Number of distinct held-out problems (unset: 256, but of a file at most a fifth, and all of
    a held-out file)."""
    prompt_template: str = "r1-zero"
    """"r1-zero" (R1, table 1), "plain", "chat" (the tokenizer's own), or text with {question}."""
    system_prompt: str | None = None
    """System message of "chat" prompts that bring none (unset: R1-Zero's instruction; "": none)."""

    def check(self) -> None:
        some = any(dataset.weight != 0 for dataset in self.datasets)
        self.require(some, "datasets", "give at least one dataset, with a weight above 0")
        given = [self.system_prompt, *(dataset.system_prompt for dataset in self.datasets)]
        unused = self.prompt_template != "chat" and given != [None] * len(given)
        reason = 'takes no system_prompt, but for "chat": it has an instruction of its own'
        self.require(not unused, "prompt_template", reason)
        known = ("r1-zero", "plain", "chat")
        valid = self.prompt_template in known or "{question}" in self.prompt_template
        accepted = f"expected one of {', '.join(known)}, or text that contains {{question}}"
        self.require(valid, "prompt_template", accepted)
