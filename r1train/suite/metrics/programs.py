"""Programs, run against the tests of their problem in a sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from r1train.config.sections import Config
from r1train.sandbox.cases import read_tests
from r1train.sandbox.isolation import require_isolation
from r1train.sandbox.judge import run_tests
from r1train.sandbox.limits import Limits, SandboxError
from r1train.suite.metrics.base import MetricBase, Response, Score
from r1train.suite.specs import Benchmark


class ProgramMetric(MetricBase):
    """1 where a program passes all tests. `rewards.code` has its limits, unless the problem states
    its own, and `rewards.workers` says how many run at a time."""

    def __init__(self, benchmark: Benchmark, config: Config) -> None:
        super().__init__(benchmark, config)
        require_isolation("python")

    def __call__(self, responses: Sequence[Response]) -> list[Score]:
        jobs = {
            (one.answer, one.question.id): (one.answer, one.question.reference)
            for one in responses
            if one.answer is not None
        }  # completions often agree: each program is run once
        with ThreadPoolExecutor(self.config.rewards.workers) as threads:
            judged = dict(zip(jobs, threads.map(self._judge, jobs.values()), strict=True))
        none = Score(0.0, {"status": "no program"})
        return [
            none if one.answer is None else judged[one.answer, one.question.id] for one in responses
        ]

    def _judge(self, job: tuple[str, Mapping[str, Any]]) -> Score:
        program, row = job
        tests = read_tests(row)
        assert tests  # the format has checked it
        if "prompt" in row:  # HumanEval's: imports, and functions that the solution may call
            program = f"{row['prompt']}\n\n{program}"
        try:
            results = run_tests(program, "python", tests, self._limits(row))
        except SandboxError as error:
            return Score(None, {"failure": str(error)})
        failed = next((result for result in results if not result.passed), None)
        if failed is None:
            return Score(1.0, {"status": "passed"})
        return Score(0.0, {"status": failed.status, "message": failed.message[:200]})

    def _limits(self, row: Mapping[str, Any]) -> Limits:
        code = self.config.rewards.code
        return Limits(
            cpu_seconds=float(row.get("time_limit") or code.cpu_seconds),
            memory_mb=int(row.get("memory_limit") or code.memory_mb),
        )
