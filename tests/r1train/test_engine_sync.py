from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from r1kernels.hf import patch
from r1train.config.model import ModelConfig
from r1train.config.sections import Config
from r1train.engine.builtin import BuiltinEngine
from r1train.engine.sync import SyncError, WeightSync, checksums, weights_of
from r1train.model.load import load_model
from r1train.model.policy import Policy
from tests.r1train.conftest import TEXTS


class Reloading(BuiltinEngine):
    """An engine whose loads go wrong as `spoil(weights)` says."""

    def __init__(self, *arguments, spoil=lambda weights: weights, **options):
        super().__init__(*arguments, **options)
        self.spoil = spoil

    def load(self, weights, version):
        held = weights_of(self.model)
        with torch.no_grad():
            for name, tensor in self.spoil(dict(weights)).items():
                held[name].copy_(tensor)
        self.version = version


class Silent(Reloading):
    """One that cannot say what it holds, as an engine in another process."""

    def weights(self):
        return None


def change(model):
    """An update, larger than those of training."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


def skip_a_layer(weights):
    return {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}


def skip_everything(weights):
    return {}


def round_a_tensor(weights):
    return weights | {"lm_head.weight": weights["lm_head.weight"].half()}


@pytest.fixture
def tied(mini):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(mini[1]),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=1,
    )
    return patch(LlamaForCausalLM(config).eval())


@pytest.mark.parametrize("spoil", [skip_a_layer, skip_everything, round_a_tensor])
def test_checksums_find_what_was_not_loaded(mini, prompts, spoil):
    model, tokenizer = mini
    engine = Reloading(model, tokenizer, dtype=torch.float32)
    sync = WeightSync(engine, Policy(model), prompts[1:3])
    sync(1)
    change(model)
    engine.spoil = spoil
    with pytest.raises(SyncError, match="weights of the rollout engine are not the trainer's"):
        sync(2)
    engine.spoil = lambda weights: weights
    sync(3)


@pytest.mark.parametrize("spoil", [skip_a_layer, skip_everything])
def test_a_probe_finds_it_where_the_engine_cannot_say_what_it_holds(mini, prompts, spoil):
    model, tokenizer = mini
    engine = Silent(model, tokenizer, dtype=torch.float32)
    sync = WeightSync(engine, Policy(model), prompts[1:3])
    sync(1)
    change(model)
    engine.spoil = spoil
    with pytest.raises(SyncError, match=r"probe differ by .* on average"):
        sync(2)


def test_tied_weights_without_a_head_are_found(mini, tied, prompts):
    engine = Reloading(tied, mini[1], dtype=torch.float32)
    head = engine.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # its own from now on
    engine.spoil = lambda weights: {n: t for n, t in weights.items() if n != "lm_head.weight"}
    sync = WeightSync(engine, Policy(tied), prompts[1:3])
    sync(1)
    change(tied)
    with pytest.raises(SyncError, match=r"not the trainer's after a load, lm_head\.weight first"):
        sync(2)
    engine.__class__ = Silent
    with pytest.raises(SyncError, match="tie its head"):
        sync(3)


def test_an_old_version_is_found(mini, prompts):
    model, tokenizer = mini
    engine = BuiltinEngine(model, tokenizer, dtype=torch.float32)
    WeightSync(engine, Policy(model), prompts[1:3])(1)
    engine.load = lambda weights, version: None
    with pytest.raises(SyncError, match=r"version 1 of the weights after a load of 2"):
        WeightSync(engine, Policy(model), prompts[1:3])(2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda weights: weights.pop("lm_head.weight"), r"holds lm_head\.weight and was not sent"),
        (lambda weights: weights.update(more=torch.zeros(2)), "was sent more, which its model"),
        (
            lambda weights: weights.update({"lm_head.weight": torch.zeros(2)}),
            r"was sent lm_head\.weight of shape \[2\]",
        ),
    ],
)
def test_a_load_of_other_tensors_is_refused(mini, spoil, message):
    model, tokenizer = mini
    engine = BuiltinEngine(model, tokenizer, dtype=torch.float32)
    weights = weights_of(model)
    spoil(weights)
    with pytest.raises(SyncError, match=message):
        engine.load(weights.items(), 1)
    assert engine.version == 0


def test_an_engine_that_shares_the_modules_is_not_sent_others(mini, prompts):
    model, tokenizer = mini
    engine = BuiltinEngine(model, tokenizer)
    WeightSync(engine, Policy(model), prompts[1:3])(4)
    assert engine.version == 4
    with pytest.raises(SyncError, match=r"rollout\.dtype"):
        engine.load(weights_of(copy.deepcopy(model)).items(), 5)


def test_an_engine_that_shares_the_modules_is_probed_once(mini, prompts, monkeypatch):
    model, tokenizer = mini
    engine = BuiltinEngine(model, tokenizer)
    generate, probes = engine.generate, []
    monkeypatch.setattr(engine, "generate", lambda *given: probes.append(1) or generate(*given))
    sync = WeightSync(engine, Policy(model), prompts[1:3])
    for version in range(3):
        sync(version)
    assert len(probes) == 1
    attend = engine.prefix.attend
    monkeypatch.setattr(engine.prefix, "attend", lambda *given: attend(*given) * 1.5)
    with pytest.raises(SyncError, match="log-probabilities of a probe"):
        WeightSync(engine, Policy(model), prompts[1:3])(4)


class PastTheCounters(BuiltinEngine):
    """One whose load is not seen by what is derived from weights."""

    def load(self, weights, version):
        for name, tensor in weights:
            self.weights()[name].data.copy_(tensor)
        self.version = version


@pytest.mark.parametrize("kind", [BuiltinEngine, PastTheCounters])
def test_codes_of_old_weights_are_found(prompts, kind):
    mini = ModelConfig(preset="deepseek-v3-mini")
    model, tokenizer = load_model(Config(model=mini, precision="fp8", fp8_layers="all"), TEXTS)
    engine = kind(model, tokenizer, dtype=torch.float32)
    engine.sampling_tolerance = 0.02  # of FP8
    sync = WeightSync(engine, Policy(model), prompts[1:3])
    sync(1)
    change(model)
    if kind is BuiltinEngine:
        sync(2)
    else:
        with pytest.raises(SyncError, match="log-probabilities of a probe"):
            sync(2)


def test_a_bfloat16_engine_has_a_tolerance_of_its_own(mini, prompts):
    model, tokenizer = mini
    engine = BuiltinEngine(model, tokenizer, dtype=torch.bfloat16)
    assert model.dtype == torch.float32
    assert engine.sampling_tolerance > 10 * BuiltinEngine(model, tokenizer).sampling_tolerance
    sync = WeightSync(engine, Policy(model), prompts[1:3])
    sync(1)
    change(model)
    sync(2)
    assert torch.equal(engine.model.lm_head.weight, model.lm_head.weight.bfloat16())


def test_checksums_follow_bits_and_their_places():
    a = torch.tensor([1.0, 2.0, 3.0, 0.0, -0.0])
    same, swapped = {"a": a.clone()}, {"a": a[[1, 0, 2, 3, 4]]}
    signs = {"a": a[[0, 1, 2, 4, 3]]}
    first = checksums({"a": a}, same)
    assert first == checksums(same, same)
    assert len({tuple(checksums(each, same).items()) for each in (same, swapped, signs)}) == 3
    wide = {"a": a.double()}
    assert checksums(wide, same) == first
    assert checksums({}, {}) == {}
