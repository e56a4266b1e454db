"""Hooks and forwards that come after ``patch_elementwise`` are seen, and nobody's are deleted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

import r1kernels
from r1kernels import hf
from tests.hf.test_hf_families import batch, tiny

pytest.importorskip("transformers")


def patched() -> Any:
    return hf.patch_elementwise(tiny("Llama"))


def norm_of(model: Any) -> Any:
    return model.model.layers[0].post_attention_layernorm


def act_of(model: Any) -> Any:
    return model.model.layers[0].mlp.act_fn


def state(model: Any) -> list[dict[str, Any]]:
    return [dict(vars(module)) for module in model.modules()]


PARTS = pytest.mark.parametrize("part", [norm_of, act_of], ids=["norm", "activation"])


@PARTS
def test_a_forward_that_was_replaced_since_is_called(part: Callable[[Any], Any]) -> None:
    model = patched()
    expected = model(**batch()).loss
    module, seen = part(model), []
    forward = module.forward

    def replaced(x: Tensor) -> Tensor:
        seen.append(x.shape)
        return forward(x)

    module.forward = replaced
    torch.testing.assert_close(model(**batch()).loss, expected)
    assert len(seen) == 1
    assert not torch.equal(_with(module, lambda x: 2 * forward(x), model), expected)


def _with(module: Any, forward: Any, model: Any) -> Tensor:
    module.forward = forward
    loss: Tensor = model(**batch()).loss
    return loss


@PARTS
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook",
                                  "register_full_backward_hook",
                                  "register_full_backward_pre_hook"])  # fmt: skip
def test_hooks_that_come_later_fire(part: Callable[[Any], Any], kind: str) -> None:
    model, seen = patched(), []
    handle = getattr(part(model), kind)(lambda module, *rest: seen.append(module))
    model(**batch()).loss.backward()
    assert seen == [part(model)]
    handle.remove()
    model(**batch()).loss.backward()
    assert len(seen) == 1


@PARTS
@pytest.mark.parametrize("kind", ["register_module_forward_hook",
                                  "register_module_forward_pre_hook",
                                  "register_module_full_backward_hook",
                                  "register_module_full_backward_pre_hook"])  # fmt: skip
def test_hooks_of_all_modules_fire(part: Callable[[Any], Any], kind: str) -> None:
    model, seen = patched(), []
    handle = getattr(modules, kind)(lambda module, *rest: seen.append(id(module)))
    try:
        model(**batch()).loss.backward()
    finally:
        handle.remove()
    assert seen.count(id(part(model))) == 1


@pytest.mark.parametrize("other", [nn.ReLU(), nn.GELU(), nn.Identity()], ids=repr)
def test_an_activation_that_was_put_in_its_place_is_called(other: nn.Module) -> None:
    model = tiny("Llama")
    changed = hf.patch_elementwise(copy.deepcopy(model))
    for each in (model, changed):
        each.model.layers[0].mlp.act_fn = copy.deepcopy(other)
    with r1kernels.using("torch"):
        assert torch.equal(changed(**batch()).loss, model(**batch()).loss)
    del changed.model.layers[0].mlp.act_fn
    changed.model.layers[0].mlp.act_fn = torch.tanh  # no module at all
    assert changed(**batch()).loss.isfinite()


def test_an_untouched_model_runs_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(patched())
    called, call = set(), nn.Module.__call__

    def seen(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        called.add(self)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", seen)
    assert model(**batch()).loss.isfinite()
    assert model.model.layers[0].input_layernorm in called
    assert not {act_of(model), norm_of(model)} & called


def test_an_activation_whose_forward_was_replaced_before_is_left() -> None:
    model = tiny("Llama")
    act_of(model).forward = act_of(model).forward
    said = hf.explain_elementwise(hf.patch_elementwise(model)).splitlines()
    assert "model.layers.0.mlp: left self.act_fn(…)·…: no activation that the ops know" in said


@pytest.mark.slow
@pytest.mark.parametrize("hook", [False, True])
def test_compiled_with_and_without_hooks(hook: bool) -> None:
    model = patched()
    expected = model(**batch()).loss
    if hook:
        for module in (norm_of(model), act_of(model)):
            module.register_forward_hook(lambda module, args, output: 2 * output)
        assert not torch.equal(model(**batch()).loss, expected)
        expected = model(**batch()).loss
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(**batch()).loss, expected)


def test_accelerate_hooks_a_patched_model() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model = patched()
    expected = model(**batch()).loss
    for module in (norm_of(model), act_of(model)):
        hook, seen = hooks.ModelHook(), []
        hook.post_forward = lambda module, output, seen=seen: (seen.append(module), output)[1]
        hooks.add_hook_to_module(module, hook)
        torch.testing.assert_close(model(**batch()).loss, expected)
        assert seen == [module]
    with pytest.raises(ValueError, match="its forward was replaced since"):
        hf.unpatch_elementwise(model)
    hooks.remove_hook_from_module(model, recurse=True)
    assert torch.equal(model(**batch()).loss, expected)


def test_accelerate_offloads_a_patched_model() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = patched()
    ids = batch()["input_ids"]
    with torch.no_grad():
        expected = model(ids).logits
        found = accelerate.cpu_offload(model)(ids).logits
    assert norm_of(model).weight.is_meta
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["input_layernorm", "self_attn", "mlp"])
def test_unpatching_deletes_nobody_elses_forward(name: str) -> None:
    for patch, unpatch in ((hf.patch_elementwise, hf.unpatch_elementwise), (_patch, hf.unpatch)):
        model = patch(tiny("Llama"))
        module = getattr(model.model.layers[1], name)
        ours, module.forward = module.forward, lambda *args, **kwargs: None
        before = state(model)
        with pytest.raises(ValueError, match=rf"layers\.1\.{name}: its forward was replaced since"):
            unpatch(model)
        assert state(model) == before
        module.forward = ours
        unpatch(model)
        assert not any("forward" in vars(each) for each in model.modules())
        assert not any(key.startswith("_r1kernels") for each in state(model) for key in each)


def _patch(model: Any) -> Any:
    return hf.patch(model, elementwise=True)
