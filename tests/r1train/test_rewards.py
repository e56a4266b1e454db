import json
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from r1train.config.rewards import RewardConfig
from r1train.config.task import DatasetConfig, TaskConfig
from r1train.data.problems import load_problems
from r1train.rewards.accuracy import AccuracyReward, extract_answer, extract_boxed
from r1train.rewards.base import Scores
from r1train.rewards.format import FormatReward, format_reward
from r1train.rewards.manager import RewardManager
from r1train.rewards.verifiers import Verifier
from tests.r1train.samples import ONE, sample, wrap

ENDLESS = "9^{9^{9^9}}"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>a</think><answer> 12 </answer>", "12"),
        ("<answer>1\n2</answer> and more", "1\n2"),
        ("<answer></answer>", None),
        ("<answer> \n </answer>", None),
        ("<answer>\u200b\u00a0\ufeff</answer>", None),
        ("<answer>1", None),
        ("</answer>1<answer>", None),
        ("<answer>1</answer><answer>2</answer>", None),
        ("<answer><answer>1</answer>", None),
        ("12", None),
        ("", None),
    ],
)
def test_extract_answer(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"So it is \boxed{12}.", "12"),
        (r"<think>\boxed{3}</think> It is \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\boxed{3}, no, \boxed{4}", "4"),
        (r"\fbox{3}", "3"),
        ("\\boxed{3\\\\}", "3\\\\"),  # a line's end is no brace of the answer's
        (r"\boxed{3 or \boxed{4}}", r"3 or \boxed{4}"),
        (r"\boxed{4, \fbox{5}}", r"4, \fbox{5}"),
        (r"\boxed{4 \text{ or } \boxed{5}} it is", r"4 \text{ or } \boxed{5}"),
        (r"\boxed{3}, \boxed{\boxed{4}}", r"\boxed{4}"),
        (r"\boxed{3, no, \boxed{4}", "4"),
        (r"\boxed{\{3\}} }", r"\{3\}"),
        (r"\\boxed{3}", "3"),  # as in a string of JSON
        (r"\boxed{3}</think>", None),
        (r"<think>\boxed{3}", None),
        (r"<think>\boxed{3}</think> It is 3.", None),
        (r"\boxed{3", None),
        (r"\boxed{}", None),
        ("\\boxed{\u200b}", None),
        ("<answer>12</answer>", None),
        ("", None),
    ],
)
def test_extract_boxed(completion, answer):
    assert extract_boxed(completion) == answer


def test_boxes_are_found_in_linear_time():
    start = time.process_time()
    for text in (r"\boxed{" * 100_000, r"\boxed{" * 100_000 + "}" * 100_000, "\\" * 400_000):
        extract_boxed(text)
    assert time.process_time() - start < 2


def test_a_box_in_thoughts_that_the_prompt_opens_is_none():
    assert extract_boxed(r"it may be \boxed{3}", prompt="Q <think>\n") is None
    assert extract_boxed(r"so</think> \boxed{3}", prompt="Q <think>\n") == "3"


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("<think>a</think><answer>1</answer>", 1.0),
        (" <think>a\nb</think>\n\n<answer>1\n</answer>\n", 1.0),
        ("<think>a</think><answer>1</answer> so", 0.0),
        ("so <think>a</think><answer>1</answer>", 0.0),
        ("<think>a</think> so <answer>1</answer>", 0.0),
        ("<think> </think><answer>1</answer>", 0.0),
        ("<think>a</think><answer></answer>", 0.0),
        ("<think>a</think><answer>\u200b</answer>", 0.0),
        ("<think>\u2060\n</think><answer>1</answer>", 0.0),
        ("<think>\u2800</think><answer>1</answer>", 0.0),
        ("<think>a</think><answer>\u3164</answer>", 0.0),
        ("<think>a</think><answer>\u0301\ufe0f</answer>", 0.0),
        ("<think>\u00e9</think><answer>\u56db</answer>", 1.0),
        ("<think>a</think><answer>-</answer>", 1.0),
        ("<think>a</think>\u200b<answer>1</answer>", 0.0),
        ("<answer>1</answer><think>a</think>", 0.0),
        ("<think>a</think><think>b</think><answer>1</answer>", 0.0),
        ("<think>a<answer>1</answer></think>", 0.0),
        ("a</think><answer>1</answer>", 0.0),
        ("<think>a</think>", 0.0),
    ],
)
def test_format_reward(completion, reward):
    assert format_reward(completion) == reward


def test_format_reward_where_the_prompt_opens_the_thought():
    assert format_reward("a</think><answer>1</answer>", think_opened=True) == 1
    assert format_reward("<think>a</think><answer>1</answer>", think_opened=True) == 0


@pytest.fixture(scope="module")
def sums():
    """Problems and their reward, which tests share: starting a process is what costs time."""
    train, _ = load_problems(TaskConfig(train_size=8, heldout_size=2), seed=0)
    accuracy = AccuracyReward(RewardConfig(timeout=20), train)
    yield train, accuracy
    accuracy.close()


def test_accuracy_is_that_of_the_only_answer(sums):
    train, accuracy = sums
    right, other = train[0], train[1]
    completions = [
        wrap(right.answer),
        wrap(other.answer),
        f"<answer>{right.answer}</answer>",
        wrap("77777"),
        wrap(f"{right.answer} or 77777"),
        wrap(""),
        "",
    ]
    problems = [right, other, *[right] * 5]
    assert accuracy([*map(sample, problems, completions)]) == Scores([1, 1, 1, 0, 0, 0, 0])


def test_accuracy_and_votes_are_of_the_box_where_the_prompt_asks_for_one(sums):
    train, _ = sums
    problem = train[0]
    said = [rf"It is \boxed{{{problem.answer}}}.", wrap(problem.answer), r"\boxed{77777}"]
    samples = [sample(problem, text) for text in said]
    with RewardManager(RewardConfig(timeout=20, answer_in="box"), train) as rewards:
        assert rewards.score(samples).by_name["accuracy"] == [1, 0, 0]
        assert rewards.answers(samples) == [problem.answer, None, "77777"]


def test_accuracy_does_not_apply_where_there_is_no_answer(sums):
    train, accuracy = sums
    poem = replace(train[0], answer="", verifiable=False)
    samples = [sample(poem, wrap("1")), sample(train[0], wrap(train[0].answer)), sample(poem, "")]
    assert accuracy(samples) == Scores([None, 1, None])


def test_format_knows_what_the_prompt_opens(sums):
    reward = FormatReward(RewardConfig(), sums[0])
    opened = sample(ONE, "a</think><answer>1</answer>", prompt="Q <think>\n")
    assert reward([opened, sample(ONE, wrap("1")), sample(ONE, "")]) == Scores([1, 1, 0])


def test_partial_credit_of_a_verifier_is_not_accuracy(sums):
    train, accuracy = sums
    problem = train[0]
    answer = f"{problem.answer} apples"
    assert 0 < Verifier(train.sources)(answer, problem) < 1
    assert accuracy([sample(problem, wrap(answer))]).values == [0]


def test_large_and_empty_batches(sums):
    train, accuracy = sums
    problems = [train[i % 8] for i in range(300)]
    answers = [p.answer if i % 3 else str(10**6 + i) for i, p in enumerate(problems)]
    scores = accuracy([*map(sample, problems, map(wrap, answers))])
    assert scores.values == [float(i % 3 > 0) for i in range(300)]
    assert accuracy([]).values == []


@contextmanager
def accuracy_of(dataset, timeout=5.0, size=1):
    config = TaskConfig(datasets=(dataset,), train_size=size, heldout_size=1)
    train, _ = load_problems(config, seed=0)
    reward = AccuracyReward(RewardConfig(timeout=timeout), train)
    yield train[0], reward
    reward.close()


def test_a_verifier_that_raises_is_an_error():
    with accuracy_of(DatasetConfig(name="prime_factorization")) as (problem, accuracy):
        samples = [sample(problem, wrap("no number")), sample(problem, wrap(problem.answer))]
        assert accuracy(samples) == Scores([0, 1], errors=1)


def test_what_runs_out_of_time_is_counted():
    source = DatasetConfig(name="spiral_matrix")  # whose verifier evaluates lists as Python
    with accuracy_of(source, timeout=0.5) as (problem, accuracy):
        samples = [sample(problem, wrap("[9**9**9**9]")), sample(problem, wrap(problem.answer))]
        assert accuracy(samples) == Scores([0, 1], timeouts=1)


def test_endless_arithmetic_costs_no_time(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(i), "answer": i}) + "\n" for i in range(4)))
    with accuracy_of(DatasetConfig(jsonl=str(path)), timeout=1, size=3) as (problem, accuracy):
        completions = [wrap(ENDLESS), wrap(r"\frac{"), wrap(f"{problem.answer}.0"), wrap(ENDLESS)]
        scores = accuracy([sample(problem, completion) for completion in completions])
        assert scores == Scores([0, 0, 1, 0])
