"""What the source of a recipe reports: figures to reach, and what they took there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from r1train.config.schema import Positive, Section


@dataclass(frozen=True)
class ReferenceConfig(Section, section="reference"):
    """What the recipe's source reports; shown beside a run's own figures and by `r1train plan`."""

    source: str | None = None
    """Where the figures are from, such as "arXiv 2501.12948, table 2"."""
    base: str | None = None
    """The model that the recipe is made for, by its name on HuggingFace."""
    device: str | None = None
    """Device that it was trained on, such as "H800"."""
    device_hours: Positive | None = None
    """Hours of such devices."""
    cost: Positive | None = None
    """Dollars that the source counts for them."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Figures to reach, by name: "AIME 2024 pass@1" = 77.9."""

    def reported(self) -> dict[str, Any]:
        """What stands beside a run's own figures; empty where the recipe is nobody's."""
        return {"source": self.source, "figures": self.figures} if self.source else {}

    def how_to_get(self, folder: str) -> str:
        """The command that puts the base into a folder, as the end of a message that it is not
        there; empty where the recipe names none."""
        if self.base is None:
            return ""
        return f"; the recipe is made for {self.base}: hf download {self.base} --local-dir {folder}"

    def check(self) -> None:
        for name, value in self.figures.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            self.require(number, "figures", f"{name}: expected a number")
        sourced = self.source is not None or not (self.figures or self.device_hours or self.cost)
        self.require(sourced, "source", "say where the figures are from")
