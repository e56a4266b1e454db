"""What the tests of verifier pools share; their pool is in conftest."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest

from r1train.rewards.pool.pool import Outcome

ROOT = Path(__file__).parents[2]
RIGHT = ("right", "right")
linux = pytest.mark.skipif(sys.platform != "linux", reason="seccomp and prctl are Linux's")


def judged(pool, *job):
    """The outcome of a job between two others, which must be right."""
    first, outcome, last = pool.run([RIGHT, job, RIGHT])
    assert first == last == Outcome(1.0)
    return outcome


def script(tmp_path, text):
    path = tmp_path / "trainer.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)], {**os.environ, "PYTHONPATH": str(ROOT)}
