"""What is expected of a recipe's stages, to be compared over its seeds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from r1train.config.schema import Section


@dataclass(frozen=True)
class FindingConfig(Section, section="findings"):
    """One finding: a figure of a stage against another, in every seed.

    A term is "STAGE: FIGURE". FIGURE is one of the stage's last evaluation, such as "pass@1" or
    "rewards/language"; "first FIGURE" is of its first; "training FIGURE" and "early FIGURE" are
    means over the last and the first tenth of what a training stage has logged; a table's figures
    have their names there.
    """

    title: str
    """What is said to be so."""
    left: str
    """The term that is expected to be greater."""
    right: str
    """The term that it is compared with, or a number."""
    paper: str = ""
    """What the paper has of it."""
    at_least: float = 0.0
    """By how much the left one is expected to be greater."""
    scale: Literal["share", "number"] = "share"
    """How figures are shown: shares in per cent."""

    def check(self) -> None:
        for name in ("left", "right"):
            term = getattr(self, name)
            number = name == "right" and _NUMBER.fullmatch(term) is not None
            valid = number or TERM.fullmatch(term) is not None
            self.require(valid, name, 'expected "STAGE: FIGURE"')


TERM = re.compile(r"(?P<stage>[^:]+): (?:(?P<when>first|training|early) )?(?P<figure>\S.*)")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
