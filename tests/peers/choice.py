"""Which tests of a peer are left out, and why: said in the run's summary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any


class Choice:
    """A plugin that deselects what a pattern is found in. reasons: pattern of node ids → why."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        self.reasons = reasons
        self.left_out: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        chosen, rest = [], []
        for item in items:
            name = item.nodeid.split("/")[-1]
            reason = next((why for what, why in self.reasons.items() if re.search(what, name)), "")
            if reason:
                self.left_out[reason] += 1
            (rest if reason else chosen).append(item)
        items[:] = chosen
        config.hook.pytest_deselected(items=rest)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("left out")
        for reason, count in self.left_out.most_common():
            terminalreporter.write_line(f"{count:5} {reason}")
