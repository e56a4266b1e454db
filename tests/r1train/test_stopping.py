from __future__ import annotations

import pytest
import torch

from r1train.engine.base import Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.engine.stopping import StopStrings


def ends(tokenizer, string, ids, fresh):
    return StopStrings(tokenizer, [string]).end(ids, fresh)


def test_the_token_that_completes_the_string_is_the_last(mini):
    _, tokenizer = mini
    ids = tokenizer("12 + 3 = 15</answer> What")["input_ids"]
    (end,) = (
        count
        for count in range(1, len(ids) + 1)
        if tokenizer.decode(ids[:count]).endswith("</answer>")
    )
    assert ends(tokenizer, "</answer>", ids, len(ids)) == end
    assert ends(tokenizer, "</answer>", ids, 5) == end - (len(ids) - 5)
    assert ends(tokenizer, "</think>", ids, len(ids)) is None


def test_a_string_of_several_tokens_is_found_over_two_looks(mini):
    _, tokenizer = mini
    ids = tokenizer("1 2 3 4 5")["input_ids"]
    text = tokenizer.decode(ids)
    for count in range(1, len(ids) + 1):
        found = [ends(tokenizer, text[2:7], ids[: i + 1], 1) for i in range(count)]
        assert (found[-1] == 1) == (text[2:7] in tokenizer.decode(ids[:count]))
        if found[-1]:
            break
    else:
        pytest.fail("never found")


@pytest.mark.parametrize("batch_size", [4, 24])
def test_completions_end_with_the_first_stop_string(mini, prompts, batch_size):
    model, tokenizer = mini
    engine = BuiltinEngine(model, tokenizer, batch_size=batch_size)
    engine.stop = torch.tensor([tokenizer.eos_token_id])
    requests = [Request(prompt, 8, seed) for seed, prompt in enumerate(prompts[1:])]
    whole = engine.generate(requests, Sampling(24))
    strings = ("a", "7")
    cut = engine.generate(requests, Sampling(24, stop=strings))
    ended = 0
    for ids, longer, finished in zip(
        cut.completion_ids, whole.completion_ids, cut.finished, strict=True
    ):
        assert ids == longer[: len(ids)]
        assert not any(string in tokenizer.decode(ids[:-1]) for string in strings)
        stopped = any(string in tokenizer.decode(ids) for string in strings)
        assert finished == (stopped or ids[-1] == tokenizer.eos_token_id)
        ended += stopped
    assert ended > 6
    assert len(cut.tokens) == len(cut.logprobs) == sum(cut.lengths)
