"""The options of one loss among those of all, as Liger and TRL hand them over."""

from __future__ import annotations

from typing import Any

from r1kernels.core import check
from r1kernels.policy.losses import LEVELS, LOSSES


def options_of(
    op: str, loss_type: str, importance_sampling_level: str, **options: float | None
) -> dict[str, Any]:
    """Keywords of ``policy_loss``. Options that ``loss_type`` lacks have no effect, as in Liger.

    Raises:
        ValueError: an unknown loss type, or a level that it does not have.
    """
    check.choice(op, "loss_type", loss_type, tuple(LOSSES))
    loss = LOSSES[loss_type]
    # Theirs call the default "token", for the losses with a ratio of their own too.
    levels = tuple(level for level in loss.levels if level in LEVELS) or ("token",)
    check.choice(op, "importance_sampling_level", importance_sampling_level, levels)
    level = importance_sampling_level if importance_sampling_level in loss.levels else None
    chosen = {name: value for name, value in options.items() if name in loss.options}
    return {"loss_type": loss_type, "importance_sampling_level": level, **chosen}
