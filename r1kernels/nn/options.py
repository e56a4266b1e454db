"""The options of one loss among those of all, as Liger and TRL hand them over."""

from __future__ import annotations

from typing import Any

from r1kernels.core import check
from r1kernels.policy.losses import LEVELS, LOSSES, OPTIONS
from r1kernels.policy.policy_loss_options import PolicyLossOptions


def level_of(op: str, loss_type: str, importance_sampling_level: str) -> str | None:
    """Ours for theirs, who call the default "token" for the losses with a ratio of their own too.

    Raises:
        ValueError: an unknown loss type, or a level that it does not have.
    """
    check.choice(op, "loss_type", loss_type, tuple(LOSSES))
    known = LOSSES[loss_type].levels
    levels = tuple(level for level in known if level in LEVELS) or ("token",)
    check.choice(op, "importance_sampling_level", importance_sampling_level, levels)
    return importance_sampling_level if importance_sampling_level in known else None


def options_of(
    op: str, loss_type: str, importance_sampling_level: str, **options: Any
) -> PolicyLossOptions:
    """Options of other losses than ``loss_type`` have no effect, as in Liger.

    Raises:
        ValueError, TypeError: naming the option, what was expected and what came.
    """
    level = level_of(op, loss_type, importance_sampling_level)
    of_others = set(OPTIONS) - set(LOSSES[loss_type].options)
    chosen = {name: value for name, value in options.items() if name not in of_others}
    with check.on_behalf_of(op):
        return PolicyLossOptions(loss_type=loss_type, importance_sampling_level=level, **chosen)
