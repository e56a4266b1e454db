from __future__ import annotations

import pytest
import torch

from r1train.engine.builtin import Engine, NotANumber, sample


@pytest.fixture
def engine(mini):
    """An engine whose completions end at different lengths: ten tokens stop it, not one."""
    engine = Engine(*mini)
    engine.stop = torch.arange(1, 290, 13)
    return engine


def test_finished_sequences_end_with_the_stop_token(engine, prompts):
    rollout = engine.generate(prompts * 4, max_new_tokens=20, seed=1)
    lengths = [len(ids) for ids in rollout.completion_ids]
    assert rollout.prompt_ids == prompts * 4
    assert len(set(lengths)) > 3
    assert [len(logprobs) for logprobs in rollout.logprobs.split(rollout.lengths)] == lengths
    stop = set(engine.stop.tolist())
    for ids, finished in zip(rollout.completion_ids, rollout.finished, strict=True):
        assert (ids[-1] in stop) == finished
        assert not stop & set(ids[:-1])
        assert finished or len(ids) == 20


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_full_forward_pass(engine, prompts, temperature):
    rollout = engine.generate(prompts * 3, max_new_tokens=20, temperature=temperature, seed=2)
    rows = zip(
        rollout.prompt_ids,
        rollout.completion_ids,
        rollout.logprobs.split(rollout.lengths),
        strict=True,
    )
    for prompt, completion, logprobs in rows:
        assert logprobs.dtype == torch.float32
        ids = torch.tensor([prompt + completion])
        logits = engine.model(ids).logits[0, len(prompt) - 1 : -1] / temperature
        expected = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0)


def test_a_seed_gives_the_same_completions_again(engine, prompts):
    first, second, other = (
        engine.generate(prompts, max_new_tokens=12, seed=seed).completion_ids for seed in (3, 3, 4)
    )
    assert first == second
    assert first != other


def test_the_company_in_the_batch_does_not_matter(engine, prompts):
    together = engine.generate(prompts * 3, max_new_tokens=12, seed=5)
    engine.batch_size = 5
    in_parts = engine.generate(prompts * 3, max_new_tokens=12, seed=5)
    assert in_parts.completion_ids == together.completion_ids
    assert in_parts.finished == together.finished
    engine.batch_size = 1
    alone = engine.generate(prompts * 3, max_new_tokens=12, seed=5)
    assert alone.completion_ids == together.completion_ids


def test_leaving_the_batch_changes_no_sequence(engine, prompts):
    leaving = engine.generate(prompts * 3, max_new_tokens=12, seed=6)
    stop, engine.stop = set(engine.stop.tolist()), torch.tensor([0])
    staying = engine.generate(prompts * 3, max_new_tokens=12, seed=6)
    for ids, longer in zip(leaving.completion_ids, staying.completion_ids, strict=True):
        assert longer[: len(ids)] == ids
        assert not stop & set(longer[: len(ids) - 1])


def test_greedy_equals_huggingface_generate(mini, prompts):
    model, tokenizer = mini
    rollout = Engine(model, tokenizer).generate(prompts, max_new_tokens=12, temperature=0)
    for prompt, ids in zip(prompts, rollout.completion_ids, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        assert ids == expected[0, len(prompt) :].tolist()


def test_each_prompt_is_computed_once(engine, prompts):
    rows = []
    hook = lambda module, arguments, keywords: rows.append(keywords["input_ids"].shape)  # noqa: E731
    handle = engine.model.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    engine.generate(prompts * 4, max_new_tokens=2)
    handle.remove()
    assert rows[0][0] == 3  # of 16 sequences
    assert rows[1] == (16, 1) or rows[1][0] < 16


def test_sampling_draws_from_the_distribution():
    logits = torch.tensor([[0.5, -1.0, 2.0, 0.0]])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    for temperature in (1.0, 0.5):
        expected = (logits[0] / temperature).softmax(-1)
        token, logprob = sample(logits.expand(10_000, -1), uniform, temperature, 1.0)
        shares = torch.bincount(token, minlength=4) / 10_000
        torch.testing.assert_close(shares, expected, atol=2e-4, rtol=0)
        torch.testing.assert_close(logprob, expected.log()[token])


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    probability = torch.tensor([[0.15, 0.5, 0.05, 0.3]])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    token, logprob = sample(probability.log().expand(1000, -1), uniform, 1.0, 0.7)
    shares = torch.bincount(token, minlength=4) / 1000
    expected = torch.tensor([0, 0.5, 0, 0.3]) / 0.8
    torch.testing.assert_close(shares, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(logprob, expected.log()[token])


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    for edge in (0.0, 1 - 2.0**-53):
        token, _ = sample(logits, torch.tensor([edge], dtype=torch.float64), 1.0, 1.0)
        assert token.item() == 1


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_stop_the_rollout(engine, prompts, temperature, value):
    head = engine.model.lm_head.weight
    before = head.detach().clone()
    with torch.no_grad():
        head[7] = value
    with pytest.raises(NotANumber, match=r"log-probability of token 0 after prompt 0 .* is NaN"):
        engine.generate(prompts, max_new_tokens=4, temperature=temperature)
    with torch.no_grad():
        head.copy_(before)
