"""The pass over a packed batch: what it holds, and that it is what a plain pass over each is."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from r1kernels.hf import head_of, patch
from r1train.config.schema import ConfigError
from r1train.model.packing import pack
from r1train.model.policy import Policy

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # so that what is attended to matters
}


def made(family, config, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return patch(family(config(**SHAPE, **options)).eval())


def llama():
    return made(LlamaForCausalLM, LlamaConfig, tie_word_embeddings=True)


def sequences(seed=0, vocabulary=64):
    """Completions of four prompts, in no order, some of one token."""
    rng = random.Random(seed)
    drawn = [rng.choices(range(vocabulary), k=rng.randint(2, 12)) for _ in range(4)]
    prompts = [rng.choice(drawn) for _ in range(13)]
    return prompts, [rng.choices(range(vocabulary), k=rng.randint(1, 9)) for _ in prompts]


def plain(model, prompts, completions):
    """The states that predict the completions, sequence by sequence."""
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([[*prompt, *completion[:-1]]])
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        found.append(hidden[0, len(prompt) - 1 :])
    return torch.cat(found)


def weighted(hidden, head):
    """A loss that no two rows have the same part in, of the logits."""
    logits = head.logits(hidden)
    weights = torch.arange(logits.numel()).view_as(logits).remainder(7) - 3.0
    return (logits * weights).sum(), hidden


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_as_plain(policy, prompts, completions):
    """Hidden states and gradients are those of a plain pass over each sequence."""
    model = policy.model
    model.zero_grad(set_to_none=True)
    hidden = plain(model, prompts, completions)
    weighted(hidden, head_of(model))[0].backward()
    expected = gradients(model)
    model.zero_grad(set_to_none=True)
    batch = pack(prompts, completions)
    _, found = policy.accumulate(batch, weighted)
    scale = hidden.abs().max().item()
    torch.testing.assert_close(found, hidden, atol=1e-5 * scale, rtol=1e-4)
    assert gradients(model).keys() == expected.keys()
    for name, gradient in gradients(model).items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], atol=2e-5 * scale, rtol=1e-3)


def test_a_packed_batch_holds_every_token_where_it_belongs():
    batch = pack([[1, 2], [3], [1, 2]], [[4, 5, 6], [7], [8, 9]])
    assert batch.prompts == [(1, 2), (3,)]
    assert batch.prompt_index == [0, 1, 0]
    assert batch.ids.tolist() == [1, 2, 3, 4, 5, 8]  # the completions of [1, 2] side by side
    assert batch.positions.tolist() == [0, 1, 0, 2, 3, 2]
    assert batch.packing.cu_seqlens.tolist() == [0, 2, 3, 5, 6, 6]
    assert batch.packing.prefix.tolist() == [-1, -1, 0, 0, 1]
    assert batch.target.tolist() == [4, 5, 6, 7, 8, 9]
    assert batch.predictors.tolist() == [1, 3, 4, 2, 1, 5]
    assert batch.cu_completions.tolist() == [0, 3, 4, 6]


@pytest.mark.parametrize("seed", range(10))
def test_values_of_sequences_go_into_the_row_and_back(seed):
    prompts, completions = sequences(seed)
    batch = pack(prompts, completions)
    pairs = zip(prompts, completions, strict=True)
    whole = torch.tensor([token for p, c in pairs for token in (*p, *c[:-1])])
    assert torch.equal(batch.ids[batch.from_row], whole)
    assert torch.equal(whole[batch.into_row], batch.ids)


@pytest.mark.parametrize(
    "model",
    [
        llama,
        lambda: made(Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=False),
    ],
    ids=["llama", "qwen2"],
)
def test_a_packed_pass_is_a_plain_one(model):
    policy = Policy(model())
    assert policy.packs
    check_as_plain(policy, *sequences())


def test_a_packed_pass_of_latent_attention_and_experts_is_a_plain_one(mini):
    policy = Policy(mini[0])
    assert policy.packs
    check_as_plain(policy, *sequences(vocabulary=200))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: made(MistralForCausalLM, MistralConfig, sliding_window=4), "sliding_window"),
        (lambda: made(Gemma2ForCausalLM, Gemma2Config, head_dim=8), "sliding_attention"),
    ],
    ids=["mistral", "gemma2"],
)
def test_a_model_that_cannot_be_packed_is_padded_and_says_why(model, reason, caplog):
    policy = Policy(model())
    assert not policy.packs
    assert "pads its sequences" in caplog.text
    assert reason in caplog.text
    check_as_plain(policy, *sequences())
    check_as_plain(policy, [[5, 6], [5, 6]], [[7], [8]])  # no token after the first
    with pytest.raises(ConfigError, match=r"gradient_checkpointing = True: .*packed"):
        Policy(policy.model, gradient_checkpointing=True)


def test_a_pass_that_mixes_sequences_is_found_out():
    model = llama()
    model.model.layers[0].register_forward_hook(lambda module, args, out: out.cumsum(1) / 9)
    assert not Policy(model).packs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_few_bits_are_no_reason_to_pad(mini, dtype):
    assert Policy(mini[0].to(dtype)).packs


def test_checkpointed_layers_compute_the_same_gradients(mini):
    model, _ = mini
    batch = pack(*sequences(vocabulary=200))
    Policy(model).accumulate(batch, weighted)
    expected = gradients(model)
    model.zero_grad(set_to_none=True)
    policy = Policy(model, gradient_checkpointing=True)
    runs = []
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    policy.accumulate(batch, weighted)
    assert len(runs) == 2  # once more in the backward pass
    assert all(torch.equal(expected[name], g) for name, g in gradients(model).items())
    policy.run(batch, lambda hidden, head: None)
    assert not any(module.training for module in model.modules())  # sampling keeps its cache


def test_weights_come_under_every_name():
    model = llama()
    weights = dict(Policy(model).weights())
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert weights.keys() == model.state_dict().keys()


def test_what_moves_has_a_tied_weight_once():
    model = llama()
    assert model.state_dict().keys() - Policy(model).moving().keys() == {"lm_head.weight"}


def test_a_policy_holds_other_weights_for_a_while(mini):
    policy = Policy(mini[0])
    before = {name: tensor.clone() for name, tensor in policy.moving().items()}
    assert [name for name in before if name.endswith("e_score_correction_bias")]
    other = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    with policy.holding(other):
        assert not any(tensor.any() for tensor in policy.moving().values())
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.moving().items())
