"""What the tests of the benchmarks share: a row, and every implementation of some scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks import whole
from benchmarks.record import Row


def row(implementation: str, seconds: float | None = 1.0, **fields: Any) -> Row:
    values = {"op": "op", "case": "case", "implementation": implementation, "seconds": seconds}
    unknown = dict.fromkeys(("tflops", "gbps", "roofline", "ratio"))
    return Row(**{**values, **unknown, "error": 0.0, **fields})


def each_implementation(scenarios: Sequence[whole.Scenario]) -> pytest.MarkDecorator:
    pairs = [(name, s) for s in scenarios for name in whole.implementations(s, "cpu")]
    ids = [f"{scenario.kind}-{scenario.name}-{name}" for name, scenario in pairs]
    return pytest.mark.parametrize(("name", "scenario"), pairs, ids=ids)
