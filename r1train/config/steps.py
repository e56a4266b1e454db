"""Where one step of a chain of thought ends and the next begins."""

from __future__ import annotations

from dataclasses import dataclass

from r1train.config.schema import Count, Section


@dataclass(frozen=True)
class StepsConfig(Section, section="steps"):
    """Steps of a solution, which a process reward model scores and tree search branches at."""

    separators: tuple[str, ...] = ("\n",)
    """Strings after which a step ends (Math-Shepherd: newlines); none: only by its tokens."""
    max_tokens: Count = 128
    """Tokens after which a step ends all the same."""

    def check(self) -> None:
        self.require(all(self.separators), "separators", "an empty string would end every step")
