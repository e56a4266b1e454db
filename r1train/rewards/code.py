"""Code: whether a program passes the test cases of its problem, run in a sandbox."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from r1train.config.rewards import RewardConfig
from r1train.config.schema import ConfigError
from r1train.data.problems import Problem, ProblemSet
from r1train.data.prompts import opens_think
from r1train.data.samples import Sample
from r1train.rewards.base import Reward, Scores
from r1train.sandbox.cases import FIELDS, Case, has_tests, language_of, read_tests
from r1train.sandbox.extract import extract_program
from r1train.sandbox.isolation import require_isolation
from r1train.sandbox.judge import require_testable, run_tests
from r1train.sandbox.limits import Language, Limits, Result, SandboxError


def is_tested(problem: Problem) -> bool:
    """Whether the row of a problem has test cases."""
    return has_tests(problem.columns)


def tests_of(problem: Problem) -> tuple[Case, ...]:
    """The test cases of a problem that is tested. Raises ValueError where they cannot be used."""
    tests = read_tests({"prompt": problem.question, **problem.columns})
    if not tests:
        raise ValueError("it has no test case")
    return tests


@dataclass(frozen=True)
class _Verdict:
    value: float | None
    error: bool = False
    timeout: bool = False
    message: str = ""
    """Why there is no value."""


class CodeReward(Reward):
    """1 where all tests of the problem are passed, else 0, or the share of those that are; None
    where a problem has no tests.

    A completion without a program has 0. Programs that end by an error or do not compile, and those
    that run out of time, are counted. Where the sandbox itself fails there is no value, a warning,
    and an error is counted. ConfigError where this machine cannot contain programs.
    """

    def __init__(self, config: RewardConfig, problems: ProblemSet) -> None:
        self.config = config.code
        self.limits = Limits(self.config.cpu_seconds, self.config.memory_mb)
        first = next((p for _, p in problems.as_they_lie() if is_tested(p)), None)
        if first is None:
            raise ConfigError(
                'rewards.functions: "code" needs problems with test cases, and none has any: give '
                f"rows with {' or '.join(FIELDS)} (docs/rewards.md)"
            )
        asked = [first]
        if "verification_info" in first.columns:  # such rows may each have a language of their own
            asked = [problem for _, problem in problems.as_they_lie() if is_tested(problem)]
        languages = set[Language]()
        for problem in asked:
            try:
                languages.add(language := self._language(problem))
                require_testable(language, tests_of(problem))
            except ValueError as error:
                raise ConfigError(f"{problem.where}: {error}") from None
        for language in sorted(languages):
            require_isolation(language)
        self.threads = ThreadPoolExecutor(config.workers, thread_name_prefix="code")
        self.warned = False

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        programs = [self._program(sample) for sample in samples]
        keys = [(p, id(sample.problem)) for p, sample in zip(programs, samples, strict=True)]
        jobs = {
            key: (program, sample.problem)
            for key, program, sample in zip(keys, programs, samples, strict=True)
            if program is not None and is_tested(sample.problem)
        }  # a group often agrees: each program is run once
        judged = dict(zip(jobs, self.threads.map(self._judge, jobs.values()), strict=True))
        verdicts = [
            judged.get(key, _Verdict(0.0)) if is_tested(sample.problem) else _Verdict(None)
            for key, sample in zip(keys, samples, strict=True)
        ]
        self._warn(verdicts)
        return Scores(
            values=[verdict.value for verdict in verdicts],
            errors=sum(verdict.error for verdict in verdicts),
            timeouts=sum(verdict.timeout for verdict in verdicts),
        )

    def close(self) -> None:
        self.threads.shutdown(cancel_futures=True)

    def _language(self, problem: Problem) -> Language:
        """Of the problem's programs: its row decides where it says one."""
        return language_of(problem.columns) or self.config.language

    def _program(self, sample: Sample) -> str | None:
        """What is in thoughts that the prompt opened counts as little as what is in others."""
        opened = "<think>" * opens_think(sample.prompt)
        return extract_program(opened + sample.completion, self._language(sample.problem))

    def _judge(self, job: tuple[str, Problem]) -> _Verdict:
        program, problem = job
        share = self.config.credit == "share"
        try:
            tests = tests_of(problem)
            language = self._language(problem)
            results = run_tests(program, language, tests, self.limits, all_tests=share)
        except (ValueError, SandboxError) as error:
            return _Verdict(None, error=True, message=f"{problem.where}: {error}")
        return _verdict(results, share)

    def _warn(self, verdicts: Sequence[_Verdict]) -> None:
        message = next((verdict.message for verdict in verdicts if verdict.message), None)
        if message is not None and not self.warned:
            self.warned = True
            logging.getLogger("r1train").warning("a program was not judged: %s (counted)", message)


def _verdict(results: Sequence[Result], share: bool) -> _Verdict:
    passed = sum(result.passed for result in results)
    statuses = {result.status for result in results}
    return _Verdict(
        value=passed / len(results) if share else float(passed == len(results)),
        error=not statuses.isdisjoint({"error", "output", "not compiled"}),
        timeout="timeout" in statuses,
    )
