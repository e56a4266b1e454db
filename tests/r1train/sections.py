"""Every section that a recipe can have."""

from __future__ import annotations

from r1train.config.schema import Section
from r1train.config.sections import Config


def sections(of: type[Section] = Section) -> list[type[Section]]:
    """Config, what it has, and what that has: without those that others are made from."""
    found = [cls for cls in of.__subclasses__() if cls.__module__.startswith("r1train.config")]
    inner = [cls for own in found for cls in sections(own)]
    return [cls for cls in found if cls.section or cls is Config] + inner
