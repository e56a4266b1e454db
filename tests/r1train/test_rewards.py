import json

import pytest

from r1train.config.sections import DatasetConfig, RewardConfig, TaskConfig
from r1train.data.problems import load_problems
from r1train.rewards.base import RewardPool, extract_answer, format_reward
from r1train.rewards.verifiers import Verifier

ENDLESS = "9^{9^{9^9}}"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>a</think><answer> 12 </answer>", "12"),
        ("<answer>1\n2</answer> and more", "1\n2"),
        ("<answer></answer>", None),
        ("<answer> \n </answer>", None),
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
    ("completion", "reward"),
    [
        ("<think>a</think><answer>1</answer>", 1.0),
        (" <think>a\nb</think>\n\n<answer>1\n</answer>\n", 1.0),
        ("<think>a</think><answer>1</answer> so", 0.0),
        ("so <think>a</think><answer>1</answer>", 0.0),
        ("<think>a</think> so <answer>1</answer>", 0.0),
        ("<think> </think><answer>1</answer>", 0.0),
        ("<think>a</think><answer></answer>", 0.0),
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


def wrap(answer, thought="a"):
    return f"<think>{thought}</think><answer>{answer}</answer>"


@pytest.fixture(scope="module")
def sums():
    """Problems and a pool that tests share: starting a process is what costs time."""
    train, _ = load_problems(TaskConfig(train_size=8, heldout_size=2), seed=0)
    with RewardPool(RewardConfig(weights=(1.0, 0.5), timeout=20), train) as pool:
        yield train, pool


def test_rewards_are_weighted_sums_in_order(sums):
    train, pool = sums
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
    batch = pool.score(completions, [right, other, *[right] * 5])
    assert batch.by_name["accuracy"] == [1, 1, 1, 0, 0, 0, 0]
    assert batch.by_name["format"] == [1, 1, 0, 1, 1, 0, 0]
    assert batch.total == [1.5, 1.5, 1, 0.5, 0.5, 0, 0]
    assert (batch.errors, batch.timeouts) == (0, 0)


def test_partial_credit_of_a_verifier_is_not_accuracy(sums):
    train, pool = sums
    problem = train[0]
    answer = f"{problem.answer} apples"
    assert 0 < Verifier(train.sources)(answer, problem) < 1
    assert pool.score([wrap(answer)], [problem]).by_name["accuracy"] == [0]


def test_large_and_empty_batches(sums):
    train, pool = sums
    problems = [train[i % 8] for i in range(300)]
    answers = [p.answer if i % 3 else str(10**6 + i) for i, p in enumerate(problems)]
    batch = pool.score([wrap(answer) for answer in answers], problems)
    assert batch.by_name["accuracy"] == [float(i % 3 > 0) for i in range(300)]
    assert pool.score([], []).total == []


def test_a_verifier_that_raises_is_an_error():
    config = TaskConfig(
        datasets=(DatasetConfig(name="prime_factorization"),), train_size=1, heldout_size=1
    )
    train, _ = load_problems(config, seed=0)
    with RewardPool(RewardConfig(), train) as pool:
        batch = pool.score([wrap("no number"), wrap(train[0].answer)], [train[0]] * 2)
    assert batch.by_name["accuracy"] == [0, 1]
    assert (batch.errors, batch.timeouts) == (1, 0)


def test_what_runs_out_of_time_is_counted():
    source = DatasetConfig(name="spiral_matrix")  # whose verifier evaluates lists as Python
    train, _ = load_problems(TaskConfig((source,), train_size=1, heldout_size=1), seed=0)
    completions = [wrap("[9**9**9**9]"), wrap(train[0].answer)]
    with RewardPool(RewardConfig(timeout=0.5), train) as pool:
        batch = pool.score(completions, [train[0]] * 2)
    assert batch.by_name["accuracy"] == [0, 1]
    assert (batch.errors, batch.timeouts) == (0, 1)


def test_endless_arithmetic_costs_no_time(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(i), "answer": i}) + "\n" for i in range(4)))
    config = TaskConfig(datasets=(DatasetConfig(jsonl=str(path)),), train_size=3, heldout_size=1)
    train, _ = load_problems(config, seed=0)
    completions = [wrap(ENDLESS), wrap(r"\frac{"), wrap(f"{train[0].answer}.0"), wrap(ENDLESS)]
    with RewardPool(RewardConfig(timeout=1), train) as pool:
        batch = pool.score(completions, [train[0]] * 4)
    assert batch.by_name["accuracy"] == [0, 0, 1, 0]
    assert (batch.errors, batch.timeouts) == (0, 0)
