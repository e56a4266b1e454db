from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from r1train.config.grpo import GRPOConfig
from r1train.config.schema import ConfigError
from r1train.config.sft import SFTConfig
from r1train.config.task import DatasetConfig, TaskConfig
from r1train.data.demonstrations import Demonstration
from r1train.data.problems import Problem, ProblemSet, load_problems
from r1train.data.worked_solutions import WorkedSolutions, chain_sum, worked_solution
from r1train.learn.optim import Optimizer, lr_share
from r1train.learn.sft import SupervisedLearner
from r1train.model.policy import Policy
from r1train.rewards.accuracy import extract_answer
from r1train.rewards.format import format_reward
from r1train.rewards.verifiers import Verifier
from r1train.seeds import deterministic
from r1train.stages.sft import check_lengths

CHAIN_SUM = Problem("chain_sum", 0, "12 + 45 - 3 =", "54", {"expression": "12 + 45 - 3"})


@pytest.fixture(scope="module")
def problems():
    dataset = DatasetConfig(name="chain_sum", params={"max_terms": 4, "max_digits": 2})
    return load_problems(TaskConfig(datasets=(dataset,), train_size=200, heldout_size=10), 0)[0]


def test_worked_solutions_are_right(problems):
    for problem in problems:
        text = worked_solution(problem, SFTConfig(), random.Random(0))
        assert format_reward(text) == 1.0
        assert Verifier(problems.sources)(extract_answer(text), problem) == 1.0
    assert worked_solution(CHAIN_SUM, SFTConfig(), random.Random(0)) == (
        "<think>12+45=57\n57-3=54</think><answer>54</answer>"
    )


def test_a_slip_makes_the_answer_wrong_and_consistent():
    for seed in range(50):
        thoughts, answer = chain_sum(CHAIN_SUM, random.Random(seed), True)
        assert answer != "54"
        assert thoughts.endswith(f"={answer}")
        first, second = thoughts.splitlines()
        assert second.startswith(first.split("=")[1] + "-3=")


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_teacher_is_as_good_as_configured(problems, share):
    rng = random.Random(0)
    config = SFTConfig(teacher_accuracy=share)
    right = [
        Verifier(problems.sources)(extract_answer(worked_solution(problem, config, rng)), problem)
        for problem in problems
        for _ in range(5)
    ]
    assert sum(right) / len(right) == pytest.approx(share, abs=0.05)
    config = SFTConfig(teacher_format=share)
    formatted = [format_reward(worked_solution(CHAIN_SUM, config, rng)) for _ in range(1000)]
    assert sum(formatted) / len(formatted) == pytest.approx(share, abs=0.05)


def solutions(problems, tokenizer, **options):
    config = SFTConfig(batch_size=40, **options)
    return WorkedSolutions(problems, config, tokenizer, template="plain", seed=0)


def test_several_solved_problems_are_one_demonstration(problems, mini):
    tokenizer, end = mini[1], mini[1].eos_token_id
    batch = solutions(problems, tokenizer, teacher_format=0.5, teacher_shots=2).batch(0)
    counts = Counter(one.completion.count(end) for one in batch)
    assert set(counts) == {1, 2, 3}
    for one in batch:
        assert one.completion[-1] == end
        learned = [token for token, flag in zip(one.completion, one.learned, strict=True) if flag]
        text, whole = tokenizer.decode(learned), tokenizer.decode(one.prompt + one.completion)
        solved = text.split(tokenizer.eos_token)[:-1]
        assert len(solved) == one.completion.count(end)  # the end of each is learnt
        assert "User:" not in text  # and no question
        assert whole.count("User:") == len(solved)
        assert len({format_reward(solution) for solution in solved}) == 1  # of one author


def test_some_problems_have_one_solution_each(problems, mini):
    kept = solutions(problems, mini[1], teacher_accuracy=0.5, teacher_problems=8)
    shown = {str(one) for step in range(3) for one in kept.batch(step)}
    assert len(shown) == 8
    assert Counter(map(str, kept.batch(0))).most_common()[-1][1] == 5  # each as often


def test_a_task_without_solutions_is_an_error():
    problems = ProblemSet([], (DatasetConfig(name="word_ladder"),))
    with pytest.raises(ConfigError, match="'word_ladder', only for chain_sum"):
        WorkedSolutions(problems, SFTConfig(), None, template="plain", seed=0)


def test_the_loss_is_that_of_the_tokens_to_learn(mini, prompts):
    model, tokenizer = mini
    completions = tokenizer(["<think>5", "a longer completion</answer>", "4", "12"])["input_ids"]
    total, count, batch = 0.0, 0, []
    for prompt, completion in zip(prompts, completions, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        learned = torch.tensor([(i + len(prompt)) % 3 > 0 for i in range(len(completion))])
        target = torch.tensor(completion)[learned]
        total = total + torch.nn.functional.cross_entropy(logits[learned], target, reduction="sum")
        count += len(target)
        batch.append(Demonstration("", prompt, completion, learned.tolist()))
    (total / count).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for budget in (1, 40, 1000):
        model.zero_grad()
        learner = SupervisedLearner(Policy(model), SFTConfig(token_budget=budget))
        parts = ([d.prompt for d in batch], [d.completion for d in batch])
        loss = learner.accumulate(*parts, [d.learned for d in batch]).item()
        assert loss == pytest.approx(total.item() / count, rel=1e-5)
        for name, parameter in model.named_parameters():
            if name in expected:
                torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3)


def test_supervision_lowers_the_loss_and_repeats_exactly(mini, problems):
    model, tokenizer = mini
    config = SFTConfig(max_steps=6, batch_size=16, learning_rate=3e-3)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    runs = []
    for _ in range(2):
        model.load_state_dict(start)
        solutions = WorkedSolutions(problems, config, tokenizer, template="plain", seed=1)
        learner = SupervisedLearner(Policy(model), config)
        with deterministic():
            batches = (solutions.batch(step) for step in range(config.max_steps))
            runs.append(
                [
                    learner.step([d.prompt for d in batch], [d.completion for d in batch])["loss"]
                    for batch in batches
                ]
            )
    assert runs[0][-1] < runs[0][0] - 0.5
    assert runs[0] == runs[1]


def test_the_learning_rate_warms_up_and_decays():
    def rates(schedule, minimum=0.0):
        return [lr_share(step, 12, 2, schedule, minimum) for step in range(12)]

    for schedule in ("constant", "linear", "cosine"):
        assert rates(schedule)[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert set(rates("constant")[2:]) == {1.0}
    assert rates("linear")[2:] == pytest.approx([1 - i / 10 for i in range(10)])
    assert rates("cosine")[7] == pytest.approx(0.5)
    assert rates("cosine") == sorted(rates("cosine")[:3]) + sorted(rates("cosine")[3:])[::-1]
    assert 0 < rates("cosine")[-1] < 0.05
    assert min(rates("cosine", 0.1)[2:]) > 0.1


def test_a_gradient_that_is_not_finite_stops_the_run(mini):
    model, _ = mini
    optimizer = Optimizer(model, GRPOConfig(), 3, 0)
    before = model.lm_head.weight.detach().clone()
    model.lm_head.weight.grad = torch.full_like(model.lm_head.weight, torch.nan)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        optimizer.step(optimizer.clip().item())
    assert torch.equal(model.lm_head.weight, before)


def test_a_model_that_is_frozen_is_refused(mini):
    model, _ = mini
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="none of the model's parameters is trainable"):
        Optimizer(model, SFTConfig(), 1, 0)


def test_a_worked_solution_fits_the_positions(mini):
    model, tokenizer = mini
    model.config.max_position_embeddings = 20
    problems = ProblemSet([CHAIN_SUM], (DatasetConfig(name="chain_sum"),))
    config = SFTConfig(max_steps=1)
    solutions = WorkedSolutions(problems, config, tokenizer, template="plain", seed=0)
    with pytest.raises(ConfigError, match=r"problem 1: .* have \d+ tokens, and the model 20 pos"):
        check_lengths(model, tokenizer, solutions.batch(0))
