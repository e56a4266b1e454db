"""Choices recorded in one pass and replayed in another."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from r1kernels import hf
from tests.gradients import assert_near, gradients
from tests.moe_models import (
    EXPERTS,
    LAYERS,
    MAIN,
    TOP_K,
    S,
    loss_of,
    tiny,
    tokens,
)

transformers = pytest.importorskip("transformers")

T = 2 * S


def patched(family: str = "DeepseekV3", **changes: Any) -> Any:
    model = tiny(family, **changes)
    hf.patch_moe(model)
    return model


def recorded(model: Any, ids: Tensor) -> Tensor:
    with hf.record_routing(model) as record:
        model(ids)
    (choices,) = record.take()
    return choices


def disturbed(model: Any) -> Any:
    """A copy whose routers choose differently, as another step's or another program's would."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for router in hf.routers(other):
            router.module.weight.add_(0.1 * torch.randn_like(router.module.weight))
    return other


@pytest.mark.parametrize("family", MAIN)
def test_what_is_recorded_replays_to_the_same_logits(family: str) -> None:
    model, ids = patched(family), tokens()
    expected, choices = model(ids).logits, recorded(model, ids)
    assert choices.shape == (T, LAYERS, TOP_K)
    assert choices.dtype == torch.int16
    with hf.replay_routing(model, choices) as replay:
        assert torch.equal(model(ids).logits, expected)
    assert replay.differing == 0


def test_the_choices_are_the_routers_own() -> None:
    model, ids = patched(), tokens()
    seen: list[Tensor] = []
    hooks = [
        router.module.register_forward_hook(lambda module, args, output: seen.append(output[2]))
        for router in hf.routers(model)
    ]
    choices = recorded(model, ids)
    for hook in hooks:
        hook.remove()
    assert torch.equal(choices.long(), torch.stack(seen, 1))


def test_one_tensor_for_each_forward_pass() -> None:
    model, ids = patched(), tokens()
    with hf.record_routing(model) as record:
        with torch.no_grad():
            model(ids)
        model(ids[:1])
        first, second = record.take()
        assert record.take() == []
        model(ids)
        (third,) = record.take()
    assert torch.equal(first, third)
    assert second.shape == (S, LAYERS, TOP_K)


def test_generate_is_recorded_pass_by_pass() -> None:
    model, ids = patched(), tokens()
    with hf.record_routing(model) as record:
        found = model.generate(ids, max_new_tokens=4, do_sample=False)
    passes = record.take()
    assert [len(choices) for choices in passes] == [T, 2, 2, 2]
    rows = torch.cat([choices.unflatten(0, (2, -1)) for choices in passes], 1)
    whole = recorded(model, found[:, :-1]).unflatten(0, (2, -1))
    assert torch.equal(rows.sort(-1).values, whole.sort(-1).values)


def test_counts() -> None:
    model, ids = patched(), tokens()
    with hf.record_routing(model) as record:
        model(ids)
        model(ids)
    (choices, _) = record.take()
    expected = torch.stack(
        [choices[:, i].flatten().long().bincount(minlength=EXPERTS) for i in range(LAYERS)]
    )
    assert torch.equal(record.counts, 2 * expected)
    assert torch.equal(hf.expert_counts(choices, EXPERTS), expected)
    with hf.replay_routing(model, choices) as replay:
        assert torch.equal(replay.counts, torch.zeros(LAYERS, EXPERTS))
        model(ids)
    assert torch.equal(replay.counts, expected)


def test_replay_takes_the_live_scores_of_the_recorded_choices() -> None:
    """In a router on its own: weights of DeepSeek-V3's formula, and the gradient they carry."""
    model = patched()
    (router, *_) = hf.routers(model)
    hidden = torch.randn(T, 32)
    choices = torch.rand(T, LAYERS, EXPERTS).argsort(-1)[..., :TOP_K]
    with hf.replay_routing(model, choices) as replay:
        logits, weights, ids = router.module(hidden)
    assert torch.equal(ids, choices[:, 0])
    chosen = logits.sigmoid().gather(1, ids)
    expected = 2.5 * chosen / chosen.sum(1, keepdim=True)
    torch.testing.assert_close(weights, expected)
    grad = torch.randn_like(weights)
    found = torch.autograd.grad(weights, router.module.weight, grad, retain_graph=True)
    torch.testing.assert_close(
        found, torch.autograd.grad(expected, router.module.weight, grad), rtol=1e-5, atol=1e-6
    )
    live = router.module(hidden)[2]
    same = (choices[:, 0, :, None] == live[:, None]).any(-1)
    assert replay.differing == pytest.approx(1 - same.float().mean().item())


def test_replay_of_another_models_choices() -> None:
    model, ids = patched(), tokens()
    other = disturbed(model)
    choices = recorded(model, ids)
    live = recorded(other, ids)
    assert not torch.equal(live.sort(-1).values, choices.sort(-1).values)
    with hf.record_routing(other) as record, hf.replay_routing(other, choices) as replay:
        other(ids)
    assert torch.equal(record.take()[0], choices)
    assert 0 < replay.differing < 1


def test_padding_goes_to_no_expert_and_is_not_counted() -> None:
    model, ids = patched(), tokens()
    choices = recorded(model, ids)
    choices[S:] = EXPERTS
    with hf.replay_routing(model, choices) as replay:
        found = model(ids).logits
    assert replay.differing == 0
    assert replay.counts.sum() == S * LAYERS * TOP_K
    torch.testing.assert_close(found[0], model(ids).logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_torchtitan_3146_checkpoints_recompute_the_replayed_choices(reentrant: bool) -> None:
    """A layer that runs again in the backward pass must take its own choices once more."""
    model, ids = patched(), tokens()
    other = disturbed(model).train()
    choices = recorded(model, ids)
    with hf.replay_routing(other, choices):
        expected = gradients(other, loss_of(other, ids))
    other.gradient_checkpointing_enable({"use_reentrant": reentrant})
    other.enable_input_require_grads()
    with hf.record_routing(other) as record, hf.replay_routing(other, choices) as replay:
        found = gradients(other, loss_of(other, ids))
    assert_near(found, expected)
    assert torch.equal(record.take()[0], choices)  # once, though every layer ran twice
    assert replay.counts.sum() == T * LAYERS * TOP_K
    assert record.counts.sum() == T * LAYERS * TOP_K


def test_torchtitan_3146_recomputation_that_would_choose_anew_is_refused() -> None:
    model, ids = patched(), tokens()
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    with hf.replay_routing(model, recorded(model, ids)):
        loss = loss_of(model, ids)
    with pytest.raises(RuntimeError, match="expected the backward pass inside the context"):
        loss.backward()
    loss_of(model, ids).backward()  # a live pass is free again


def test_compiled() -> None:
    model, ids = patched(), tokens()
    other = disturbed(model)
    choices = recorded(model, ids)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    with hf.replay_routing(other, choices) as expected:
        logits = other(ids).logits
    with hf.replay_routing(other, choices) as replay, hf.record_routing(other) as record:
        found = compiled(ids).logits
    torch.testing.assert_close(found, logits)
    assert torch.equal(replay.counts, expected.counts)
    assert replay.differing == expected.differing
    assert torch.equal(record.take()[0], choices)


def test_contexts_end_with_an_error_inside() -> None:
    model, ids = patched(), tokens()
    expected = model(ids).logits
    with (
        pytest.raises(ZeroDivisionError),
        hf.record_routing(model),
        hf.replay_routing(model, torch.zeros(T, LAYERS, TOP_K, dtype=torch.int64)),
    ):
        raise ZeroDivisionError
    assert torch.equal(model(ids).logits, expected)


def test_a_forward_pass_that_breaks_off() -> None:
    model, ids = patched(), tokens()
    hook = model.model.layers[0].register_forward_hook(lambda *args: 1 / 0)
    with hf.record_routing(model) as record:
        with pytest.raises(ZeroDivisionError):
            model(ids)
        with pytest.raises(RuntimeError, match=r"every layer as often as any other, got \[0, 1\]"):
            record.take()
        hook.remove()
        model(ids)
        assert len(record.take()) == 1


def test_errors() -> None:
    model, ids = patched(), tokens()
    choices = recorded(model, ids)
    with pytest.raises(ValueError, match="record_routing: model: expected one with patched"):
        hf.record_routing(tiny("Mixtral")).__enter__()
    with pytest.raises(ValueError, match="replay_routing: ids: expected L = 2 in shape"):
        hf.replay_routing(model, choices[:, :1]).__enter__()
    with pytest.raises(ValueError, match="replay_routing: ids: expected k = 3 in shape"):
        hf.replay_routing(model, choices[..., :2]).__enter__()
    with pytest.raises(TypeError, match="replay_routing: ids: expected dtype int64 or int32 or"):
        hf.replay_routing(model, choices.float()).__enter__()
    with (
        hf.replay_routing(model, choices),
        pytest.raises(ValueError, match="ids: expected T = 9 tokens, got 18"),
    ):
        model(ids[:1])
    with hf.record_routing(model), pytest.raises(ValueError, match="is not being recorded"):
        hf.record_routing(model).__enter__()
