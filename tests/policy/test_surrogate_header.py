"""Translating the losses' algebra to C++; that it is right, the parity tests of the op say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from r1kernels.policy.losses import KL_ESTIMATORS, PARAMETERS

ROOT = Path(__file__).parents[2]
translate = runpy.run_path(str(ROOT / "csrc/cpu/policy/surrogates_header.py"))["translate"]


def test_every_surrogate_and_estimator_is_in_its_table() -> None:
    header = translate((ROOT / "r1kernels/policy/surrogates.py").read_text())
    for table, names in (("R1_SURROGATES", PARAMETERS), ("R1_ESTIMATORS", KL_ESTIMATORS.values())):
        (line,) = re.findall(rf"#define {table}\(use\) (.*)", header)
        assert set(re.findall(r"use\((\w+)\)", line)) == set(names)


def test_numbers_fold_and_a_second_assignment_declares_nothing() -> None:
    header = translate("def k(x):\n    y = x * (1 / 4)\n    y = -y\n    return y, exp(y)\n")
    assert "F y = (x * splat(0.25f));" in header
    assert "  y = (-y);" in header
    assert "return {y, exp(y)};" in header


@pytest.mark.parametrize(
    ("line", "shown"),
    [("y = x ** 2", "x ** 2"), ("y = x.exp()", "x.exp()"), ("if x: pass", "if x:")],
)
def test_what_it_cannot_translate_is_an_error_with_its_line(line: str, shown: str) -> None:
    with pytest.raises(SystemExit, match=re.escape(f"surrogates.py:2: cannot translate {shown}")):
        translate(f"def k(x):\n    {line}\n    return y, y\n")
