"""The reward "code": whose programs it runs, what they earn, and what is counted."""

from __future__ import annotations

import logging

import pytest

from r1train.config.code import CodeConfig
from r1train.config.rewards import RewardConfig
from r1train.config.schema import ConfigError
from r1train.config.task import DatasetConfig
from r1train.data.problems import Problem, ProblemSet
from r1train.rewards import code
from r1train.rewards.accuracy import AccuracyReward
from r1train.rewards.base import Scores
from r1train.rewards.code import CodeReward
from r1train.rewards.manager import RewardManager
from r1train.sandbox.limits import SandboxError
from tests.r1train.boxes import boxed
from tests.r1train.samples import ONE, sample

ROW = {"inputs": ["1 2\n", "2 5\n", "4 4\n"], "outputs": ["3\n", "7\n", "8\n"]}
ADDITION = Problem("code.jsonl", 0, "Add two numbers.", "", columns=ROW, verifiable=False)
ANSWERED = Problem("code.jsonl", 1, "Add two numbers!", "3", columns=ROW)
RIGHT = "print(sum(map(int, input().split())))"
NEARLY = "a, b = map(int, input().split())\nprint(a * b + (a == 1))"  # the first alone


def said(program, name="python"):
    return f"<think>a</think>So:\n```{name}\n{program}\n```\n"


def rewarded(completions, problem=ADDITION, workers=1, **options):
    config = RewardConfig(("code",), workers=workers, code=CodeConfig(cpu_seconds=1.0, **options))
    reward = CodeReward(config, ProblemSet([problem], ()))
    try:
        return reward([sample(problem, completion) for completion in completions])
    finally:
        reward.close()


pytestmark = boxed


def test_all_tests_or_nothing():
    programs = [RIGHT, NEARLY, "print(3)", "print(", "while True: pass"]
    completions = [*map(said, programs), RIGHT, "", said(RIGHT, "cpp")]
    scores = rewarded(completions, workers=2)
    assert scores == Scores([1.0] + [0.0] * 7, errors=1, timeouts=1)


def test_a_share_of_the_tests():
    scores = rewarded([said(RIGHT), said(NEARLY), ""], credit="share")
    assert scores.values == [1.0, pytest.approx(1 / 3), 0.0]


def test_cpp():
    add = '#include <cstdio>\nint main(){int a,b;scanf("%d%d",&a,&b);printf("%d",a+b);}'
    scores = rewarded([said(add, "cpp"), said("int main(", "cpp"), said(RIGHT)], language="cpp")
    assert scores == Scores([1.0, 0.0, 0.0], errors=1)


def test_a_program_is_run_once_for_all_that_give_it(monkeypatch):
    programs = []
    original = code.run_tests
    monkeypatch.setattr(
        code, "run_tests", lambda p, *a, **k: programs.append(p) or original(p, *a, **k)
    )
    assert rewarded([said(RIGHT)] * 3).values == [1.0] * 3
    assert programs == [RIGHT + "\n"]


def test_thoughts_that_the_prompt_opened_are_no_answer():
    reward = CodeReward(RewardConfig(("code",)), ProblemSet([ADDITION], ()))
    drafts = [sample(ADDITION, f"```python\n{RIGHT}\n```", prompt="Assistant: <think>")]
    assert reward(drafts).values == [0.0]
    reward.close()


def test_a_problem_is_judged_by_its_tests_or_by_its_answer():
    """Where both could be, accuracy leaves it to the tests, if they are run at all."""
    problems = ProblemSet([ANSWERED, ONE], (DatasetConfig(path="code.jsonl"),))
    answers = [sample(ANSWERED, "<answer>3</answer>"), sample(ONE, "<answer>2</answer>")]
    for functions, expected in ((("code", "accuracy"), [None, 1.0]), (("accuracy",), [1.0, 1.0])):
        reward = AccuracyReward(RewardConfig(functions), problems)
        assert reward(answers).values == expected
        reward.close()
    with RewardManager(RewardConfig(("code",), code=CodeConfig(cpu_seconds=1.0)), problems) as all_:
        scored = all_.score([sample(ANSWERED, said(RIGHT)), sample(ONE, said(RIGHT))])
    assert scored.by_name == {"code": [1.0, None]}
    assert scored.total == [1.0, 0.0]


def test_without_isolation_nothing_is_run(monkeypatch):
    def refuse(language):
        raise ConfigError(f"{language} programs cannot be contained here: install it")

    monkeypatch.setattr(code, "require_isolation", refuse)
    with pytest.raises(ConfigError, match="cannot be contained"):
        rewarded([said(RIGHT)])


def test_problems_without_tests_or_with_others_are_named():
    with pytest.raises(ConfigError, match='"code" needs problems with test cases'):
        rewarded([said(RIGHT)], ONE)
    bad = Problem("code.jsonl", 4, "?", "", columns={"inputs": ["1"], "outputs": []}, place="row 5")
    with pytest.raises(ConfigError, match="row 5: test cases: 1 inputs, but 0 outputs"):
        rewarded([said(RIGHT)], bad)
    function = Problem("f", 0, "?", "", columns={**ROW, "fn_name": "f"}, place="row 1")
    function.columns["inputs"] = [[1]] * 3
    with pytest.raises(ConfigError, match="row 1: C\\+\\+ is tested by standard input"):
        rewarded([said(RIGHT)], function, language="cpp")


def test_a_sandbox_that_fails_is_no_verdict(monkeypatch, caplog):
    def fail(*_, **__):
        raise SandboxError("no process can be started")

    monkeypatch.setattr(code, "run_tests", fail)
    with caplog.at_level(logging.WARNING):
        assert rewarded([said(RIGHT), said(NEARLY), ""]) == Scores([None, None, 0.0], errors=2)
    assert caplog.text.count("no process can be started") == 1


def verified(language, number=0):
    tests = [{"input": "1 2\n", "output": "3\n", "fn_name": None, "type": "stdin_stdout"}]
    info = {"language": language, "test_cases": tests}
    columns = {"verification_info": info, "language": "en"}  # of the question
    return Problem("code.jsonl", number, f"Add {number}.", "", columns=columns, place="row 7")


def test_the_row_of_a_problem_says_the_language():
    add = '#include <cstdio>\nint main(){int a,b;scanf("%d%d",&a,&b);printf("%d",a+b);}'
    problems = [verified(None), verified("python", 1), verified("C++", 2)]
    config = RewardConfig(("code",), workers=1, code=CodeConfig(cpu_seconds=1.0))
    reward = CodeReward(config, ProblemSet(problems, ()))
    completion = said(RIGHT) + said(add, "cpp").partition("So:")[2]
    scores = reward([sample(problem, completion) for problem in problems])
    python = reward([sample(problems[2], said(RIGHT))])
    reward.close()
    assert scores == Scores([1.0, 1.0, 1.0])
    assert python.values == [0.0]


def test_a_language_that_no_program_is_run_in_is_named():
    config = RewardConfig(("code",))
    with pytest.raises(
        ConfigError, match=r"row 7: verification_info\.language is 'rust': expected"
    ):
        CodeReward(config, ProblemSet([verified("python"), verified("rust", 1)], ()))
