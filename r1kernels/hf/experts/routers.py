"""Routers of a mixture of experts through ``moe_route``, on the instances of one model."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from r1kernels.hf.bound import Bound
from r1kernels.hf.experts.router_rule import BIAS, RouterRule, router_rule
from r1kernels.hf.experts.routing_records import RecordedRouting, ReplayedRouting, in_backward
from r1kernels.moe.route import moe_route


class Router:
    """A patched router of a model; ``routers(model)`` has all.

    module: the model's own, with its weights. layer: its place among the routers of the model.
    num_experts, top_k: E and k, as they were when it was patched.
    """

    def __init__(self, module: nn.Module, rule: RouterRule, layer: int) -> None:
        self.module: Any = module
        self.rule, self.layer = rule, layer
        options: Any = module
        self.num_experts: int = options.num_experts
        self.top_k: int = options.top_k
        self.recording: RecordedRouting | None = None
        self.replaying: ReplayedRouting | None = None
        self.replayed = False  # the last forward pass was a replay

    @property
    def bias(self) -> Tensor | None:
        """[E] float32: what is added to the scores for the choice alone, updated in place."""
        bias: Tensor | None = self.module._buffers.get(BIAS)
        return bias

    def __call__(self, hidden: Tensor) -> tuple[Any, ...]:
        z = self.rule.casts.product(self.module, hidden)
        replay = self.replaying
        if replay is None:
            self._check_live()
        wanted = None if replay is None else replay.of(self.layer, z, self.choose)
        routing = moe_route(
            z, self.top_k, bias=self.bias, replay_ids=wanted, align=None, **self.rule.options
        )
        if self.recording is not None:
            self.recording.see(self.layer, routing.ids)
        return self.rule.casts.output(hidden, z, routing.weights, routing.ids)

    def _check_live(self) -> None:
        if not in_backward():
            self.replayed = False
        elif self.replayed:  # gradients would be those of other experts than ran
            raise RuntimeError(
                "replay_routing: a gradient checkpoint runs its layer again: expected the backward "
                "pass inside the context, got it outside"
            )

    def choose(self, z: Tensor) -> Tensor:
        """[T, k]: what would be chosen live by logits z [T, E]."""
        options = {"bias": self.bias, "align": None, **self.rule.options}
        return moe_route(z.detach(), self.top_k, **options).ids


def routers(model: nn.Module) -> list[Router]:
    """The patched routers of a model, in the order of its layers; none if it is not patched.

    A router that does something else than ``moe_route`` is not among them: it runs its own code
    (``patch`` warns of it), and is neither recorded nor replayed.
    """
    found = (vars(module).get("_r1kernels") for module in model.modules())
    return [router for router in found if isinstance(router, Router)]


def patch_routers(model: nn.Module) -> None:
    known: dict[Any, RouterRule | str] = {}
    layer = 0
    for module in model.modules():
        if not _may_route(module):
            continue
        key = _options_of(module)
        if key not in known:
            known[key] = router_rule(module)
            if isinstance(reason := known[key], str):
                name = type(module).__name__
                warnings.warn(f"patch: {name}: left as it is, since {reason}", stacklevel=3)
        if isinstance(rule := known[key], RouterRule):
            _patch(module, Router(module, rule, layer))
            layer += 1


def unpatch_routers(model: nn.Module) -> None:
    for router in routers(model):
        module = router.module
        del module.forward, module._apply, module._r1kernels


def _may_route(module: nn.Module) -> bool:
    named = re.search("Router|Gate$", type(module).__name__) is not None
    return named and hasattr(module, "num_experts") and hasattr(module, "top_k")


def _options_of(module: nn.Module) -> tuple[Any, ...]:
    """What two routers of one rule have in common."""
    plain = (bool, int, float, str, type(None))
    options = tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if isinstance(value, plain) and name not in ("training", "layer_idx")
    )
    shapes = tuple((n, t.shape) for n, t in module.named_parameters())
    return type(module), options, shapes, "forward" in vars(module)


def _patch(module: Any, router: Router) -> None:
    module._r1kernels = router
    module.forward = Bound(_forward, module)
    module._apply = Bound(_apply, module)
    if (bias := module._buffers.get(BIAS)) is not None:
        module._buffers[BIAS] = _widened(bias, bias)


# Not closures over the module, so that copies and pickles of the model run their own.


def _forward(self: Any, hidden_states: Tensor) -> Any:
    return self._r1kernels(hidden_states)


def _apply(self: Any, *args: Any, **kwargs: Any) -> Any:
    """``nn.Module._apply``, through which ``to(bfloat16)`` goes, but the bias stays float32.

    Its updates are a thousandth: at a bias of 5 bfloat16 would round each of them away.
    """
    before = self._buffers.get(BIAS)
    type(self)._apply(self, *args, **kwargs)
    if before is not None:
        self._buffers[BIAS] = _widened(self._buffers[BIAS], before)
    return self


def _widened(bias: Tensor, values: Tensor) -> Tensor:
    """``values`` in float32 where ``bias`` is narrower, on its device."""
    narrow = bias.dtype in (torch.bfloat16, torch.float16)
    return values.to(bias.device, torch.float32) if narrow else bias
