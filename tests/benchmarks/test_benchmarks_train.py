"""The benchmark of a step of training: every implementation does the same, and how it is shown."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from benchmarks import train, train_tasks, whole
from tests.benchmarking import each_implementation, row


def small_step(kind: str, active: float = 0.5, model: str = "deepseek-v3-mini") -> Any:
    return train_tasks.Scenario(
        model, model, 2, 4, 12, 6, kind, active=active, token_budget=32
    )  # in parts: a text has up to 18 tokens


@cache
def truth(scenario: train_tasks.Scenario) -> tuple[torch.Tensor, ...]:
    return whole.step("hf", scenario, scenario.make("cpu", torch.float64))()


STEPS = [small_step("update"), small_step("update", model="llama-mini"), small_step("rollout")]


@each_implementation(STEPS)
def test_every_step_of_training_is_the_same(name: str, scenario: train_tasks.Scenario) -> None:
    exact, task = truth(scenario), scenario.make("cpu")
    call = whole.step(name, scenario, task)
    for _ in range(2):  # nothing stays of the first: neither gradients nor weights
        assert whole.error(call(), exact) < 1e-5
    assert exact[0].abs().sum() > 0
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_groups_of_equal_rewards_have_no_advantage() -> None:
    task = small_step("update").make("cpu")
    assert [bool(group.any()) for group in task.advantages.view(2, 4)] == [True, False]


def test_tokens_that_follow_from_another_one_do_not_count() -> None:
    exact = torch.arange(12).view(3, 4)
    assert whole.differing(exact, exact) == 0.0
    other = exact.clone()
    other[1, 1:] += 1  # after 1 token that agrees, of 4 + 2 + 4 that can be compared
    assert whole.differing(other, exact) == pytest.approx(0.1)
    assert whole.differing(exact + 1, exact) == 1.0


def test_a_step_of_training_is_shown_in_tokens_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(scenario: train_tasks.Scenario, *_: Any, **__: Any) -> whole.Measured:
        return whole.Measured([row(whole.WE, 2.0, shape=(3000,)), row("hf", None)], [])

    monkeypatch.setattr(train, "measure", measure)
    assert len(list(train.bench("cpu", quick=True))) == 2
    printed = capsys.readouterr().out
    assert [cell.strip() for cell in printed.splitlines()[5].split("|")[2:4]] == ["2000 ms", "1500"]
    assert max(map(len, printed.splitlines())) <= 80
