"""The benchmark of a step of training: every implementation does the same, and how it is shown."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from benchmarks import train, train_tasks, whole
from benchmarks.peers import ablations
from tests.benchmarking import each_implementation, row

EVERYBODY = ("hf", "trl", ablations.OWN_PROMPTS, ablations.EVERY_GROUP)


def small_step(kind: str, model: str = "deepseek-v3-mini", **options: Any) -> Any:
    return train_tasks.Scenario(
        model, model, 2, 4, 12, 8, kind, active=0.5, token_budget=32, **options
    )  # in parts: a text has up to 20 tokens


@cache
def truth(scenario: train_tasks.Scenario, number: int) -> tuple[torch.Tensor, ...]:
    return whole.step("hf", scenario, scenario.make("cpu", torch.float64, number))()


STEPS = [
    small_step("update", peers=EVERYBODY),
    small_step("update", model="llama-mini"),
    small_step("rollout"),
]


@each_implementation(STEPS)
def test_every_step_of_training_is_the_same(name: str, scenario: train_tasks.Scenario) -> None:
    for number in (0, 1):  # nothing stays of the first: neither gradients nor weights
        exact, task = truth(scenario, number), scenario.make("cpu", round=number)
        assert whole.error(whole.step(name, scenario, task)(), exact) < 1e-5
        assert exact[0].abs().sum() > 0
        assert all(parameter.grad is None for parameter in task.model.parameters())


def test_every_round_has_other_texts_of_other_lengths() -> None:
    scenario = small_step("update")
    first, second = (scenario.draw(number) for number in (0, 1))
    assert [*map(len, first.completions)] != [*map(len, second.completions)]
    assert scenario.tokens(0) == scenario.shape[0] == sum(map(len, first.completions))
    assert scenario.draw(0) == scenario._replace().draw(0)
    tasks = [scenario.make("cpu", round=number) for number in (0, 1)]
    assert tasks[0].model is tasks[1].model
    assert tasks[1].completions == second.completions


def test_groups_of_equal_rewards_have_no_advantage() -> None:
    task = small_step("update").make("cpu")
    assert sorted(bool(group.any()) for group in task.advantages.view(2, 4)) == [False, True]


@pytest.mark.parametrize("name", [ablations.OWN_PROMPTS, ablations.EVERY_GROUP])
def test_without_it_more_goes_through_the_model(name: str) -> None:
    """Otherwise the comparison is one of equals: what is left out must be missed."""
    from r1train.model.policy import Policy

    scenario = small_step("update")._replace(token_budget=1024)
    passed: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        accumulate = Policy.accumulate
        for one in (whole.WE, name):
            call, sizes = whole.step(one, scenario, scenario.make("cpu")), list[int]()

            def counted(policy: Any, batch: Any, *args: Any, into: list[int] = sizes) -> Any:
                into.append(len(batch.ids))
                return accumulate(policy, batch, *args)

            patch.setattr(Policy, "accumulate", counted)
            call()
            passed[one] = sum(sizes)
    assert passed[name] > passed[whole.WE] > 0


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
    def measure(scenario: train_tasks.Scenario, *_: Any) -> train.Measured:
        rows = [row(whole.WE, 2.0, shape=(3000,)), row("hf", 4.0, shape=(3000,)), row("trl", None)]
        return train.Measured(rows, [{whole.WE: 2.0, "hf": 4.0}] * 3, [])

    monkeypatch.setattr(train, "measure", measure)
    monkeypatch.setattr(train.race, "bench", lambda *_: iter(()))
    assert len(list(train.bench("cpu", quick=True))) == 2
    printed = capsys.readouterr().out
    assert [cell.strip() for cell in printed.splitlines()[5].split("|")[2:4]] == ["2000 ms", "1500"]
    assert "r1kernels wins against hf: 0.50 of its time" in printed
    assert "against trl" not in printed
    assert max(map(len, printed.splitlines())) <= 90


def test_seconds_are_those_of_the_first_rounds_tokens_at_the_median_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = small_step("update")
    right = dict.fromkeys((whole.WE, "hf"), lambda: None)
    errors = dict.fromkeys((whole.WE, "hf", "trl"), 0.0)
    monkeypatch.setattr(whole, "check", lambda *_: whole.Checked(errors, right, ["trl: no"]))
    rounds = [{whole.WE: 1.0, "hf": 4.0}, {whole.WE: 3.0, "hf": 4.0}, {whole.WE: 2.0, "hf": 2.0}]
    monkeypatch.setattr(train, "timed", lambda *_, **__: rounds)
    rows, _, problems = train.measure(scenario, "cpu", quick=True)
    assert [row.seconds for row in rows] == [
        2.0 * scenario.tokens(0),
        4.0 * scenario.tokens(0),
        None,
    ]
    assert [row.ratio for row in rows] == [0.75, 1.0, None]
    assert problems == ["trl: no"]
