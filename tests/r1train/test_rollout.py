from __future__ import annotations

import copy
import itertools
import logging
import os
from contextlib import contextmanager

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from r1kernels.hf import head_of
from r1train.config.schema import RunError
from r1train.engine.base import NotANumber, Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.engine.sampling import draw
from r1train.engine.workspace import free_memory_of, memory_of

STOP = torch.arange(1, 290, 13)


@pytest.fixture
def engine(mini):
    """An engine whose completions end at different lengths: many tokens stop it, not one."""
    engine = BuiltinEngine(*mini)
    engine.stop = STOP
    return engine


@pytest.fixture
def grouped(mini):
    """A Llama whose heads share keys and values, and the tokenizer."""
    config = LlamaConfig(
        vocab_size=len(mini[1]),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.3,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval(), mini[1]


@pytest.fixture
def windowed(mini):
    """A Mistral whose layers see the last four tokens alone."""
    config = MistralConfig(
        vocab_size=len(mini[1]),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        initializer_range=0.3,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    return MistralForCausalLM(config).eval()


def requests(prompts, n=3, seed=1):
    return [Request(prompt, n, seed + 100 * i) for i, prompt in enumerate(prompts)]


def watched(engine, *arguments):
    """What an engine generates, and how many rows went through the model in each pass."""
    rows = []
    head_of(engine.model)  # which runs the model when it is asked first
    handle = engine.model.base_model.register_forward_pre_hook(
        lambda module, inputs, named: rows.append(len(named["input_ids"])), with_kwargs=True
    )
    rollout = engine.generate(*arguments)
    handle.remove()
    return rollout, rows


def check_logprobs(model, rollout, temperature=1.0):
    """Against a pass of every text alone."""
    logprobs = rollout.logprobs.split(rollout.lengths)
    rows = zip(rollout.prompt_ids, rollout.completion_ids, logprobs, strict=True)
    for prompt, completion, found in rows:
        assert found.dtype == torch.float32
        ids = torch.tensor([prompt + completion])
        logits = model(ids).logits[0, len(prompt) - 1 : -1] / temperature
        expected = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_finished_sequences_end_with_the_stop_token(engine, prompts):
    rollout = engine.generate(requests(prompts, n=4), Sampling(20))
    lengths = [len(ids) for ids in rollout.completion_ids]
    assert rollout.prompt_ids == [prompt for prompt in prompts for _ in range(4)]
    assert len(set(lengths)) > 3
    assert [len(logprobs) for logprobs in rollout.logprobs.split(rollout.lengths)] == lengths
    stop = set(STOP.tolist())
    for ids, finished in zip(rollout.completion_ids, rollout.finished, strict=True):
        assert (ids[-1] in stop) == finished
        assert not stop & set(ids[:-1])
        assert finished or len(ids) == 20


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_full_forward_pass(engine, prompts, temperature):
    rollout = engine.generate(requests(prompts), Sampling(20, temperature))
    check_logprobs(engine.model, rollout, temperature)


def test_heads_that_share_keys_and_values(grouped, prompts):
    engine = BuiltinEngine(*grouped)
    engine.stop = STOP
    rollout = engine.generate(requests(prompts, n=5), Sampling(20))
    assert len(set(rollout.lengths)) > 3
    check_logprobs(engine.model, rollout)


@pytest.mark.parametrize("sampling", [Sampling(12), Sampling(12, 0.7), Sampling(12, 0)])
def test_logits_that_are_never_written_give_the_same_tokens(engine, prompts, sampling, monkeypatch):
    expected = engine.generate(requests(prompts), sampling)
    monkeypatch.setattr("r1train.engine.sampling.LARGE", 1)
    found = engine.generate(requests(prompts), sampling)
    assert found.completion_ids == expected.completion_ids
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-5, rtol=0)


def test_a_seed_gives_the_same_completions_again(engine, prompts):
    first, second, other = (
        engine.generate(requests(prompts, seed=seed), Sampling(12)).completion_ids
        for seed in (3, 3, 4)
    )
    assert first == second
    assert first != other


def test_the_company_in_the_batch_does_not_matter(engine, prompts):
    together = engine.generate(requests(prompts), Sampling(12))
    for size in (5, 1):
        engine.batch_size = size
        parts = engine.generate(requests(prompts), Sampling(12))
        assert parts.completion_ids == together.completion_ids
        assert parts.finished == together.finished
    (alone,) = engine.generate(requests(prompts)[2:3], Sampling(12)).completion_ids[1:2]
    assert alone == together.completion_ids[7]


def test_leaving_the_batch_changes_no_sequence(engine, prompts):
    leaving = engine.generate(requests(prompts), Sampling(12))
    engine.stop = torch.tensor([0])
    staying = engine.generate(requests(prompts), Sampling(12))
    for ids, longer in zip(leaving.completion_ids, staying.completion_ids, strict=True):
        assert longer[: len(ids)] == ids


def test_greedy_equals_huggingface_generate(mini, prompts):
    model, tokenizer = mini
    greedy = Sampling(12, temperature=0)
    rollout = BuiltinEngine(model, tokenizer).generate(requests(prompts, n=1), greedy)
    for prompt, ids in zip(prompts, rollout.completion_ids, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        assert ids == expected[0, len(prompt) :].tolist()


def test_each_prompt_is_computed_once(engine, prompts):
    engine.stop = torch.tensor([-1])
    _, rows = watched(engine, requests(prompts, n=4), Sampling(2))
    assert rows == [3, 16]  # two requests have the same prompt


def test_rows_that_have_ended_leave_the_model_by_halves(engine, prompts):
    rollout, rows = watched(engine, requests(prompts, n=8), Sampling(20))
    for step, slots in enumerate(rows[1:]):
        going = sum(length > step + 1 for length in rollout.lengths)
        assert going <= slots < 2.25 * going  # of the slots an eighth may be empty from the start
    assert len(set(rows[1:])) > 2


def test_a_batch_is_as_large_as_the_memory_allows(engine, prompts, monkeypatch):
    together = engine.generate(requests(prompts), Sampling(12))
    sizes = []
    decode = engine._decode
    monkeypatch.setattr(
        engine, "_decode", lambda rows, *rest: sizes.append(len(rows)) or decode(rows, *rest)
    )
    engine.max_memory_gib = 5e5 / 2**30
    parts = engine.generate(requests(prompts), Sampling(12))
    assert parts.completion_ids == together.completion_ids
    assert 1 < sizes[0] < 12
    assert sum(sizes) == 12


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize(
    ("prompt", "tokens", "remedy"),
    [(1500, 1, "shorten the prompts"), (1, 5000, r"lower rollout\.max_completion_length")],
)
def test_a_memory_that_is_too_small_is_an_error(grouped, windowed, general, prompt, tokens, remedy):
    model = windowed if general else grouped[0]
    engine = BuiltinEngine(model, grouped[1], max_memory_gib=5e5 / 2**30)
    message = rf"one completion needs .*: raise rollout\.max_memory_gib, or {remedy}"
    with pytest.raises(RunError, match=message):
        engine.generate([Request([3] * prompt)], Sampling(tokens))


def test_no_batch_depends_on_the_memory_that_others_leave(engine, prompts):
    engine.batch_size = 1 << 60
    alone = engine._sizes(requests(prompts), Sampling(12))
    taken = bytearray(b"x" * (64 << 20))
    assert engine._sizes(requests(prompts), Sampling(12)) == alone
    assert len(taken) == 64 << 20


def test_too_little_free_memory_is_a_warning_once(mini, prompts, caplog, monkeypatch):
    monkeypatch.setattr("r1train.engine.workspace.free_memory_of", lambda device: free)
    engine = BuiltinEngine(*mini)
    free = 1 << 30
    expected = engine.generate(requests(prompts), Sampling(12))
    free = 0  # beside what decoding has already
    engine.generate(requests(prompts[:1]), Sampling(2))
    assert not caplog.records
    for _ in range(2):
        found = engine.generate(requests(prompts, n=30), Sampling(12))
    assert found.completion_ids[:3] == expected.completion_ids[:3]
    (record,) = caplog.records
    assert "rollout.max_memory_gib" in record.getMessage()


def test_what_this_process_or_others_have_is_not_free(tmp_path, monkeypatch):
    machine, process = tmp_path / "meminfo", tmp_path / "statm"
    monkeypatch.setattr("r1train.engine.workspace.MEMINFO", machine)
    monkeypatch.setattr("r1train.engine.workspace.STATM", process)
    monkeypatch.setattr("r1train.engine.workspace.memory_of", lambda device: 1 << 30)
    resident = 100 * os.sysconf("SC_PAGE_SIZE")
    process.write_text("900 100 50 1 0 700 0\n")
    for available, expected in ((1 << 30, (1 << 30) - resident), (1 << 20, 1 << 20)):
        machine.write_text(f"MemTotal: 9 kB\nMemAvailable:   {available >> 10} kB\nCached: 1 kB\n")
        assert free_memory_of(torch.device("cpu")) == expected


def test_a_container_has_the_memory_of_its_limit(tmp_path, monkeypatch):
    second, first = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr("r1train.engine.workspace.LIMITS", (second, first))
    host = memory_of(torch.device("cpu"))
    assert host > 1 << 20
    for path, limit, expected in (
        (second, "max", host),
        (second, "1048576", 1 << 20),
        (first, "9223372036854771712", 1 << 20),
        (first, "65536", 1 << 16),
    ):
        path.write_text(f"{limit}\n")
        assert memory_of(torch.device("cpu")) == expected


@contextmanager
def memory():
    """Within it PyTorch's allocations on the CPU are seen; the last of the list is their peak."""
    found = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        yield found
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    events.sort(key=lambda each: each.start_ns())
    found.append(max(itertools.accumulate(each.nbytes() for each in events)))


@pytest.mark.parametrize("general", [False, True])
def test_long_prompts_stay_within_the_memory(grouped, windowed, general):
    asked = [Request([3 + (i * j) % 50 for j in range(200)], 2, i) for i in range(32)]
    model, tokenizer = windowed if general else grouped[0], grouped[1]
    with memory() as used:
        together = BuiltinEngine(model, tokenizer).generate(asked, Sampling(2))
    engine = BuiltinEngine(model, tokenizer, max_memory_gib=used[0] / 3 / 2**30)
    with memory() as bounded:
        found, rows = watched(engine, asked, Sampling(2))
    assert bounded[0] < used[0] / 3
    assert rows[0] < 16
    assert found.completion_ids == together.completion_ids
    torch.testing.assert_close(found.logprobs, together.logprobs)


@pytest.mark.parametrize(
    ("sampling", "rows"),
    [
        (Sampling(2, top_p=0.9), 20),
        (Sampling(2, top_k=5, top_p=0.9, min_p=0.01), 20),
        (Sampling(2), 64),  # on a CPU no logits are written
    ],
)
def test_a_large_vocabulary_stays_within_the_memory(grouped, sampling, rows):
    config = copy.copy(grouped[0].config)
    config.vocab_size = 20_000
    bound, model = 15 << 20, LlamaForCausalLM(config).eval()
    engine = BuiltinEngine(model, grouped[1], max_memory_gib=bound / 2**30)
    with memory() as used:
        _, decoded = watched(engine, [Request([3, 4, 5], 64)], sampling)
    assert used[0] < bound
    assert max(decoded) == rows


def test_prompts_in_parts_keep_their_experts(engine, prompts):
    together = engine.generate(requests(prompts), Sampling(6))
    rows = [(request, j) for request in requests(prompts) for j in range(request.n)]
    for prompts_at_once in (1, 2):
        found = engine._decode(rows, Sampling(6), prompts_at_once)
        assert torch.equal(torch.cat(found.routing), torch.cat(together.routing))
        assert found.tokens.tolist() == together.tokens.tolist()


def test_a_window_of_attention_takes_the_general_way(mini, windowed, prompts, caplog):
    with caplog.at_level(logging.WARNING, logger="r1train"):
        engine = BuiltinEngine(windowed, mini[1])
    assert "its attention has sliding_window" in caplog.text
    engine.stop = STOP
    rollout = engine.generate(requests(prompts, n=4), Sampling(12))
    assert len(set(rollout.lengths)) > 2
    check_logprobs(windowed, rollout)


def test_the_model_attends_as_before(mini, prompts):
    model, tokenizer = mini
    ids = torch.tensor([prompts[0]])
    expected = model(ids).logits
    BuiltinEngine(model, tokenizer).generate(requests(prompts), Sampling(4))
    assert torch.equal(model(ids).logits, expected)


def test_filters_leave_the_most_probable_tokens():
    probability = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).expand(1000, -1)
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    for options in ({"top_p": 0.7}, {"top_k": 2}, {"min_p": 0.55}):
        token, logprob = draw(probability.log(), uniform, Sampling(1, **options))
        shares = torch.bincount(token, minlength=4) / 1000
        expected = torch.tensor([0, 0.5, 0, 0.3]) / 0.8
        torch.testing.assert_close(shares, expected, atol=2e-3, rtol=0)
        torch.testing.assert_close(logprob, expected.log()[token])


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_stop_the_rollout(engine, prompts, temperature, value):
    with torch.no_grad():
        engine.model.lm_head.weight[7] = value
    with pytest.raises(NotANumber, match=r"log-probability of token 0 after prompt 0 .* is NaN"):
        engine.generate(requests(prompts), Sampling(4, temperature))
