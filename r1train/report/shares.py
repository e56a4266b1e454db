"""Which figures are shares, by their names: a page shows them in per cent, others as numbers."""

from __future__ import annotations

import re

SHARES = (
    *(r"pass@\d+", r"cons@\d+", "format", "truncated"),  # of evaluations
    *("accuracy", "accuracy_low", "accuracy_high"),  # of samples, and of judgements kept apart
    *("right", "value"),  # of solutions, and of their steps
    *("greedy", "majority", "best_of_n", "weighted_majority", "mcts", "mcts_majority"),
    *("mcts/found", "value/pair_accuracy"),
)
"""Whole names, as metrics.jsonl and table.json have them."""


def is_share(name: str) -> bool:
    """Whether the figure is one, also of some problems (`pass@1/level=3`) or of fewer samples
    (`majority/n=4`)."""
    return re.fullmatch("|".join(SHARES), re.sub("/[^/=]+=.*", "", name)) is not None
