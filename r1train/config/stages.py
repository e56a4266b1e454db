"""What a recipe is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, TypeVar

from r1train.config.schema import ConfigError, Section, Seed, nearest, shown

OWN_SECTIONS = (
    *("task", "rewards", "rollout", "sft", "grpo", "eval"),
    *("sample", "rejection", "reward_model", "distill", "plan"),
    *("steps", "process_reward", "search"),
)
"""Sections that a stage can have of its own."""
KINDS = {"grpo": "rl"}
"""Older names of kinds of stages."""
MARK = "stage:"
"""What an option begins with that means what an earlier stage has left."""


class HasPath(Protocol):
    """Options that name a file."""

    @property
    def path(self) -> str: ...


Named = TypeVar("Named", bound=HasPath)


def files_of(sources: Iterable[Named], key: str) -> Iterator[tuple[Named, str]]:
    """Those of the sources below `key` that are no stage's, and the setting that names each."""
    for number, source in enumerate(sources):
        if not source.path.startswith(MARK):
            yield source, f"{key}[{number}].path"


@dataclass(frozen=True)
class StageConfig(Section, section="stages"):
    """One stage of a recipe. What it sets in sections of its own, as in [stages.grpo], overrides
    those of the recipe, key by key; the same kind may come many times."""

    kind: str
    """What it does: "sft", "rl", "rejection", "evaluate" …; those of `r1train.stages`."""
    name: str | None = None
    """Its name in the log and of its folder (unset: the kind, and a number from the second on)."""
    init: str | None = None
    """Where its model comes from: the name of a stage before it, the path of a HuggingFace folder,
    or "preset:" and a name (unset: the stage before it, and for the first the section [model])."""
    seed: Seed | None = None
    """Its random draws follow from it (unset: from the run's seed and the stage's name)."""
    evaluate: bool | None = None
    """Whether held-out problems are evaluated before and after it (unset: of the last stage)."""
    sections: dict[str, Any] = field(default_factory=dict)
    """In Python, its own sections by name: {"grpo": {"learning_rate": 1e-6}}."""

    @classmethod
    def coerce(cls, value: Any, key: str) -> StageConfig:
        """From the table that a file has, whose own sections stand beside its keys; or a kind."""
        if isinstance(value, str):
            value = {"kind": KINDS.get(value, value), "name": value}
        if not isinstance(value, Mapping) or "kind" not in value:
            raise ConfigError(f"{key} = {shown(value)}: expected a table with a kind, or a kind")
        own = {f.name for f in fields(cls)}
        sections = dict(value.get("sections", {}))
        for name in value:
            if name in OWN_SECTIONS:
                sections[name] = value[name]
            elif name not in own:
                raise ConfigError(f"unknown key '{name}' in {key}: {nearest(name, own)}")
        values = {name: value[name] for name in value if name in own}
        return cls(**{**values, "sections": sections})

    def check(self) -> None:
        object.__setattr__(self, "kind", KINDS.get(self.kind, self.kind))
        for name, values in self.sections.items():
            self.require(name in OWN_SECTIONS, "sections", nearest(name, OWN_SECTIONS))
            self.require(isinstance(values, Mapping), "sections", f"expected a table as {name}")
        if self.name is not None:
            self.require(names_a_folder(self.name), "name", FOLDER_RULE)
            taken = self.name.startswith(("checkpoint", ".", "tensorboard")) or "." in self.name
            self.require(not taken, "name", "a file of the run folder may have that name")


FOLDER_RULE = "it names a folder: expected 1 to 200 printable characters, no slash, not only dots"


def names_a_folder(name: str) -> bool:
    plain = name.isprintable() and not {"/", "\\"} & {*name}
    return plain and name.strip(". ") != "" and len(name.encode()) <= 200
