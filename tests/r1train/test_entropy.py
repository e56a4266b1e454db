"""The weight of the entropy bonus follows the entropy where there is a target."""

from __future__ import annotations

import pytest
import torch

from r1train.cli import main
from r1train.config.grpo import GRPOConfig
from r1train.engine.base import Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.learn.entropy import EntropyBonus
from r1train.learn.grpo import Learner
from r1train.model.policy import Policy

TARGET = {"target_entropy": 0.2, "entropy_coef_step": 0.001, "max_entropy_coef": 0.002}


def test_without_a_target_the_weight_stays() -> None:
    bonus = EntropyBonus(GRPOConfig(entropy_coef=0.01))
    bonus.observe(0.0)
    assert bonus.weight == 0.01


def test_the_weight_rises_below_the_target_and_rests_above_it() -> None:
    bonus = EntropyBonus(GRPOConfig(**TARGET))
    weights = []
    for entropy in (0.1, 0.1, 0.1, 0.3, 0.1, 0.3, 0.3, 0.3, 0.1):
        bonus.observe(entropy)
        weights.append(round(bonus.weight, 6))
    assert weights == [0.001, 0.002, 0.002, 0.0, 0.002, 0.0, 0.0, 0.0, 0.001]


def test_a_bonus_goes_on_from_its_state() -> None:
    bonus, other = EntropyBonus(GRPOConfig(**TARGET)), EntropyBonus(GRPOConfig(**TARGET))
    bonus.observe(0.1)
    other.load_state_dict(bonus.state_dict())
    assert other.weight == bonus.weight == 0.001


def test_the_learner_pushes_the_entropy_up_only_below_the_target(mini, prompts) -> None:
    """Rewards say nothing in the mean, so what differs is the bonus."""
    model, tokenizer = mini
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = {}
    for target in (100.0, 1e-6):  # nats: never reached, always exceeded
        model.load_state_dict(start)
        config = GRPOConfig(
            max_steps=3, num_generations=4, beta=0.0, learning_rate=3e-3,
            target_entropy=target, entropy_coef_step=0.5, max_entropy_coef=1.0,
            lr_scheduler_type="constant",
        )  # fmt: skip
        learner = Learner(Policy(model), config, temperature=1.0, max_completion_length=8)
        engine = BuiltinEngine(model, tokenizer)
        figures = []
        for _ in range(3):
            requests = [Request(prompt, 4, 10 * i) for i, prompt in enumerate(prompts[1:3])]
            rollout = engine.generate(requests, Sampling(8))
            figures.append(learner.step(rollout, [1, 0, 0, 1, 0, 1, 1, 0]))
        found[target] = figures
    assert [step["entropy_coef"] for step in found[1e-6]] == [0.0, 0.0, 0.0]
    assert [step["entropy_coef"] for step in found[100.0]] == [0.0, 0.5, 1.0]
    assert found[100.0][0]["loss"] == found[1e-6][0]["loss"]  # nothing was seen yet
    assert found[100.0][2]["entropy"] > found[1e-6][2]["entropy"]
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_a_weight_above_its_bound_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["grpo.target_entropy=0.2", "grpo.entropy_coef=0.1"]
    assert main(["config", "r1-zero-mini", *options]) == 2
    assert "max_entropy_coef is 0.005" in capsys.readouterr().err
