from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from r1train.config.sections import GRPOConfig
from r1train.engine.base import NotANumber, Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.learn.batch import Batch
from r1train.learn.grpo import Learner, SamplingMismatch

CONFIG = GRPOConfig(
    max_steps=4, prompts_per_step=4, num_generations=4, learning_rate=1e-3, beta=0.0
)
REWARDS = [1, 0, 0, 2, 1, 1, 1, 1, 0, 1, 2, 1, 0, 0, 0, 0]  # the second and fourth are constant
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "reinforce")


@pytest.fixture
def rollout(mini, prompts):
    engine = BuiltinEngine(*mini)
    engine.stop = torch.arange(1, 290, 13)  # completions of many lengths
    prompts = [prompts[1], prompts[2], prompts[3], prompts[1] + prompts[3]]
    requests = [Request(prompt, 4, seed) for seed, prompt in enumerate(prompts)]
    return engine.generate(requests, Sampling(16))


def learner(model, config, temperature=1.0):
    return Learner(model, config, temperature=temperature, max_completion_length=16, seed=0)


def gradients(model, config, rollout, rewards=REWARDS):
    """The gradient that one step would apply, as one vector."""
    model.zero_grad()
    subject = learner(model, config)
    subject.optimizer.step = lambda: {}  # keeps the gradients, and the weights
    subject.load.step = dict  # and the experts' biases
    metrics = subject.step(rollout, rewards)
    flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(flat), metrics


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_token_budget_does_not_change_the_gradient(mini, rollout, loss_type):
    model, _ = mini
    whole, metrics = gradients(model, replace(CONFIG, loss_type=loss_type), rollout)
    for budget in (1, 100, 300):
        config = replace(CONFIG, loss_type=loss_type, token_budget=budget)
        parts, again = gradients(model, config, rollout)
        torch.testing.assert_close(parts, whole, atol=1e-5 * whole.abs().max().item(), rtol=1e-3)
        assert again["loss"] == pytest.approx(metrics["loss"], abs=1e-5)
        assert again["entropy"] == pytest.approx(metrics["entropy"], rel=1e-4)


def test_a_prompt_is_encoded_once_where_its_group_fits(mini, rollout):
    model, _ = mini
    rows = []
    model.base_model.register_forward_pre_hook(
        lambda module, arguments, keywords: rows.append(len(keywords["input_ids"])),
        with_kwargs=True,
    )
    groups = [sum(rollout.lengths[i : i + 4]) + len(rollout.prompt_ids[i]) for i in range(0, 16, 4)]
    learner(model, replace(CONFIG, token_budget=max(groups))).step(rollout, [0, 0, 0, 1] * 4)
    prompts = rows[::2]  # each part's prompts, then its completions
    assert sum(prompts) == 4


@pytest.mark.parametrize("loss_type", LOSSES)
def test_leaving_constant_groups_out_does_not_change_the_gradient(mini, rollout, loss_type):
    model, _ = mini
    config = replace(CONFIG, loss_type=loss_type)
    dropped, metrics = gradients(model, config, rollout)
    assert metrics["frac_reward_zero_std"] == 0.5
    # With a reference that equals the policy the KL term is zero, but every row is computed.
    computed, _ = gradients(model, replace(config, beta=1e-3), rollout)
    torch.testing.assert_close(dropped, computed, atol=1e-5 * dropped.abs().max().item(), rtol=1e-3)


def test_constant_groups_never_reach_the_backbone(mini, rollout):
    model, _ = mini
    rows = []
    model.base_model.register_forward_pre_hook(
        lambda module, arguments, keywords: rows.append(len(keywords["input_ids"])),
        with_kwargs=True,
    )
    learner(model, CONFIG).step(rollout, REWARDS)
    assert rows == [2, 8]  # prompts once, then the completions of two groups out of four


def test_a_rollout_of_constant_groups_leaves_the_weights_alone(mini, rollout):
    model, _ = mini
    before = [p.clone() for p in model.parameters()]
    subject = learner(model, CONFIG)
    metrics = subject.step(rollout, [1.0] * 16)
    assert metrics["frac_reward_zero_std"] == 1.0
    assert metrics["learning_rate"] == pytest.approx(1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    later = learner(model, CONFIG)
    later.optimizer.skip()
    assert later.optimizer.skip()["learning_rate"] < 1e-3  # the schedule moves on


def test_a_step_makes_rewarded_completions_more_likely(mini, rollout):
    model, _ = mini
    subject = learner(model, replace(CONFIG, lr_scheduler_type="constant"))
    rewards = [float(i % 4 == 0) for i in range(16)]
    before = torch.stack([logprobs.mean() for logprobs in rollout.logprobs.split(rollout.lengths)])
    subject.step(rollout, rewards)
    logprobs = subject._logprobs(model, _batch(rollout))
    gain = torch.stack([x.mean() for x in logprobs]) - before
    assert gain[::4].mean() > 0
    assert gain[::4].mean() > gain.mean()


@pytest.mark.parametrize("options", [{"num_minibatches": 4}, {"num_iterations": 2}])
def test_several_updates_compare_with_the_policy_before_the_first(mini, rollout, options):
    model, _ = mini
    subject = learner(model, replace(CONFIG, **options))
    metrics = subject.step(rollout, REWARDS)
    assert subject.optimizer.done == subject.updates
    assert metrics["sampling_delta_max"] < 1e-3  # of the policy that sampled, not the updated one
    assert metrics["ratio_max"] > 1.0


def test_old_logprobs_are_those_of_the_sampler(mini, rollout):
    model, _ = mini
    for budget in (1, 100, 10_000):
        subject = learner(model, replace(CONFIG, token_budget=budget))
        logprobs = subject._logprobs(model, _batch(rollout))
        torch.testing.assert_close(torch.cat(logprobs), rollout.logprobs, atol=1e-4, rtol=0)


def test_the_reference_is_replaced_every_so_many_steps(mini, rollout):
    model, _ = mini
    subject = learner(model, replace(CONFIG, beta=0.1, ref_model_sync_steps=2))

    def same():
        pairs = zip(subject.reference.parameters(), model.parameters(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    assert same()
    metrics = subject.step(rollout, REWARDS)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert not same()
    rollout = replace(rollout, logprobs=torch.cat(subject._logprobs(model, _batch(rollout))))
    assert subject.step(rollout, REWARDS)["kl"] > 0
    assert same()


def test_a_sampler_with_other_weights_is_an_error(mini, rollout):
    model, _ = mini
    before = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight *= 1.05  # what the engine did not hear of
    stale = model.lm_head.weight.detach().clone()
    with pytest.raises(SamplingMismatch, match="differ by"):
        learner(model, CONFIG).step(rollout, REWARDS)
    assert torch.equal(model.lm_head.weight, stale)  # found before the update
    with torch.no_grad():
        model.lm_head.weight.copy_(before)
    with pytest.raises(SamplingMismatch, match="temperature"):
        learner(model, CONFIG, temperature=0.7).step(rollout, REWARDS)


def test_weights_that_are_no_numbers_stop_before_the_update(mini, rollout):
    model, _ = mini
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    subject = learner(model, CONFIG)
    subject.optimizer.step = lambda: pytest.fail("the weights were changed")
    with pytest.raises(NotANumber, match="weights have diverged"):
        subject.step(rollout, REWARDS)


def _batch(rollout):
    advantages = torch.zeros(len(rollout.finished))
    logprobs = list(rollout.logprobs.split(rollout.lengths))
    parts = rollout.prompt_ids, rollout.completion_ids, advantages, logprobs
    return Batch(*parts, routing=rollout.routing)
