"""What CUDA graphs capture, run as it is: the device counts the steps, and nothing is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from r1kernels.core import check
from r1train.config.model import ModelConfig
from r1train.config.sections import Config
from r1train.engine import decode
from r1train.engine.base import Request, Sampling
from r1train.engine.builtin import BuiltinEngine
from r1train.engine.clock import SHORTEST, Clock
from r1train.model.load import load_model
from tests.r1train.conftest import TEXTS

ASKING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "bincount", "equal", "unique")


class Asked(AssertionError):
    pass


class NothingAsked(TorchDispatchMode):
    """Raises where a value is asked for, but within this library's ops, which have their test."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if name in ASKING:
            raise Asked(name)
        masks = [x for x in args[1:2] if isinstance(x, (list, tuple))]
        if name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for mask in masks
            for index in mask
        ):
            raise Asked(f"{name} with a mask")
        return function(*args, **(kwargs or {}))


class Uncaptured:
    """In the place of `Graphs`: runs every step, and keeps the shapes that it was told."""

    def __init__(self):
        self.shapes = []

    def keep_for(self, addresses):
        self.addresses = addresses

    def run(self, shape, step):
        self.shapes.append(shape)
        with NothingAsked():
            step()


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(check, "may_look", lambda tensor: False)


@pytest.fixture
def engine(mini):
    engine = BuiltinEngine(*mini)
    engine.stop = torch.arange(1, 290, 13)
    return engine


@pytest.fixture
def requests(prompts):
    return [Request(prompt, 4, seed) for seed, prompt in enumerate(prompts)]


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9, "top_k": 20, "temperature": 0.7}])
def test_steps_that_the_device_counts_do_the_same(engine, requests, filters, monkeypatch):
    monkeypatch.setattr("r1train.engine.clock.SHORTEST", 4)
    expected = engine.generate(requests, Sampling(20, **filters))
    engine.graphs = Uncaptured()
    monkeypatch.setattr(decode.Decoding, "_due", lambda self, step: step % decode.LOOK_EVERY == 0)
    found = engine.generate(requests, Sampling(20, **filters))
    assert found.completion_ids == expected.completion_ids
    torch.testing.assert_close(found.logprobs, expected.logprobs, atol=1e-5, rtol=0)
    assert all(map(torch.equal, found.routing, expected.routing))
    assert 2 < len(set(engine.graphs.shapes)) < len(engine.graphs.shapes)


def test_a_step_that_asks_would_be_found(engine, requests):
    engine.graphs = Uncaptured()
    step = engine.prefix.forward
    engine.prefix.forward = lambda *arguments: step(*arguments) * float(torch.ones(()).item())
    with pytest.raises(Asked):
        engine.generate(requests, Sampling(4))


def test_what_is_captured_keeps_its_place_from_rollout_to_rollout(engine, requests):
    engine.graphs = Uncaptured()
    engine.generate(requests, Sampling(12))
    first = engine.graphs.addresses  # after the last time that rows have left
    engine.generate(requests, Sampling(12))
    assert engine.graphs.addresses == first
    engine.generate(requests, Sampling(64))
    assert engine.graphs.addresses != first


def test_nothing_captured_reads_codes_of_old_weights():
    fp8 = Config(model=ModelConfig(preset="deepseek-v3-mini"), precision="fp8", fp8_layers="all")
    model, tokenizer = load_model(fp8, TEXTS)
    engine = BuiltinEngine(model, tokenizer)
    engine.graphs = Uncaptured()
    requests = [Request([5, 6, 7], 4)]
    engine.generate(requests, Sampling(4))
    first = engine.graphs.addresses
    engine.generate(requests, Sampling(4))
    assert engine.graphs.addresses == first
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.mul_(2)
    engine.generate(requests, Sampling(4))
    assert engine.graphs.addresses != first


def test_nothing_captured_reads_an_old_head(engine, requests, monkeypatch):
    made = engine.model.lm_head.weight.detach().clone()  # as where adapters are appended to it
    head = replace(decode.head_of(engine.model), weight=made)
    monkeypatch.setattr(decode, "head_of", lambda model: head)
    engine.graphs = Uncaptured()
    engine.generate(requests, Sampling(4))
    assert made.data_ptr() in engine.graphs.addresses[1]


def test_a_clock_of_the_device_reaches_to_a_power_of_two():
    now = torch.tensor([70])
    assert Clock(5, now).reach(1000) == SHORTEST
    assert Clock(70, now).reach(1000) == 128
    assert Clock(70, now).reach(100) == 100
    assert Clock(70, now).later(128).tolist() == [False] * 71 + [True] * 57
    assert Clock(70).reach(1000) == 71
    assert Clock(70).later(71) is None
