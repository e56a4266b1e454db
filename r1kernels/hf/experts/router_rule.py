"""How a router of a mixture of experts gets from hidden states to choices, found by watching it.

Some sixty families have a router class of their own, most of them copies of a few. A table of
names would be wrong for the next one. So the class's own forward runs on a few random rows, with
random weights, and the rule that gives the same logits, choices and weights is taken; if none
does, the router stays as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1kernels.moe.route import moe_route
from r1kernels.moe.sort import MAX_EXPERTS

BIAS = "e_score_correction_bias"
ROWS = 64

# score, order, normalize. The softmax of the chosen comes first: it equals a softmax of all that
# is divided by the chosen's sum, and does not underflow where replayed choices are unlikely ones.
SCORES = (
    ("softmax", "topk_first", False),
    ("softmax", "score_first", False),
    ("sigmoid", "score_first", True),
    ("sigmoid", "score_first", False),
    ("sqrtsoftplus", "score_first", True),
    ("sqrtsoftplus", "score_first", False),
)


class Casts(NamedTuple):
    """The dtypes on a router's way, and its output."""

    in_float32: bool  # both sides of the product are cast first
    float32_logits: bool  # the product is cast afterwards
    weights_like: str  # "float32", or the tensor whose dtype the weights have
    positions: tuple[int, int, int]  # of logits, weights and ids in the output

    def product(self, module: Any, hidden: Tensor) -> Tensor:
        """[..., H] → what the module's linear map makes of it, [T, E]."""
        weight, bias = module.weight, module._parameters.get("bias")
        if self.in_float32:
            weight, bias = weight.float(), None if bias is None else bias.float()
        return F.linear(hidden.reshape(-1, hidden.shape[-1]).to(weight.dtype), weight, bias)

    def output(self, hidden: Tensor, z: Tensor, weights: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """The module's own output, of the product z, the weights and the ids."""
        like = {"float32": torch.float32, "logits": z.dtype, "hidden": hidden.dtype}
        logits = z.float() if self.float32_logits else z
        found = logits, weights.to(like[self.weights_like]), ids
        return tuple(found[self.positions.index(position)] for position in range(3))


CASTS = tuple(
    Casts(*choice)
    for choice in product(
        (True, False), (True, False), ("float32", "logits", "hidden"), ((0, 1, 2), (2, 1, 0))
    )
)


class RouterRule(NamedTuple):
    """Logits are ``casts.product(module, hidden)``, the rest is ``moe_route`` with ``options``."""

    casts: Casts
    options: dict[str, Any]


def router_rule(module: nn.Module) -> RouterRule | str:
    """The rule of a router, or the reason why it has none."""
    if (reason := _unlike_a_router(module)) is not None:
        return reason
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            probes = [Probe(module, setting) for setting in SETTINGS]
        except Exception as error:  # of whatever kind: the code is somebody else's
            return f"its forward does not run on rows alone ({error})"
        casts = next((casts for casts in CASTS if all(probe.has(casts) for probe in probes)), None)
        if casts is None:
            return "its output is not the logits of a linear map, weights and ids"
        exact = [probe for probe in probes if probe.setting in (EXACT, EXACT_EVAL)]
        for options in _options(module):
            if all(probe.comes_from(RouterRule(casts, options)) for probe in exact):
                return RouterRule(casts, options)
    return "it chooses or weighs in a way that moe_route does not"


def _unlike_a_router(module: Any) -> str | None:
    experts, top_k = getattr(module, "num_experts", None), getattr(module, "top_k", None)
    weight = module._parameters.get("weight")
    if "forward" in vars(module):
        return "its forward was replaced"
    if not isinstance(experts, int) or not isinstance(top_k, int):
        return "its num_experts and top_k are no numbers"
    if weight is None or weight.dim() != 2 or len(weight) != experts:
        return "it has no weight of one row an expert"
    if not set(module._parameters) <= {"weight", "bias"} or not set(module._buffers) <= {BIAS}:
        return "it has parameters or buffers of another kind"
    if any(True for child in module.children() for _ in (*child.parameters(), *child.buffers())):
        return "it has modules with parameters"
    if experts > MAX_EXPERTS:
        return f"it has more than {MAX_EXPERTS} experts"
    takes = inspect.signature(type(module).forward).parameters.values()
    if sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in takes) != 2:
        return "its forward takes more than hidden states"
    return None


class Setting(NamedTuple):
    dtype: torch.dtype = torch.float32
    training: bool = True
    autocast: bool = False

    def context(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()


EXACT, EXACT_EVAL = Setting(), Setting(training=False)  # training: where noise would be added
SETTINGS = (EXACT, EXACT_EVAL, Setting(torch.bfloat16), Setting(autocast=True))


class Probe:
    """What the forward of a router's class makes of random rows, on the CPU."""

    def __init__(self, module: nn.Module, setting: Setting) -> None:
        rng = torch.Generator("cpu").manual_seed(0)
        self.setting, self.clone = setting, _clone(module, setting, rng)
        width = self.clone.weight.shape[1]
        self.hidden = _normal((ROWS, width), rng).to(setting.dtype)
        with setting.context():
            self.output = type(module).forward(self.clone, self.hidden.clone())

    def has(self, casts: Casts) -> bool:
        """Whether ``casts`` give its logits, and the dtypes and shapes of the rest."""
        if not isinstance(self.output, tuple) or len(self.output) != 3:
            return False
        with self.setting.context():
            z = casts.product(self.clone, self.hidden)
        some = z.new_empty(ROWS, self.clone.top_k)
        found = casts.output(self.hidden, z, some, some.long())
        same = all(
            a.dtype == b.dtype and a.shape == b.shape
            for a, b in zip(found, self.output, strict=True)
        )
        at = casts.positions[0]
        return same and torch.equal(found[at], self.output[at])

    def comes_from(self, rule: RouterRule) -> bool:
        """Whether the rule gives its choices, in whatever order, and its weights."""
        _, weights, ids = (self.output[position] for position in rule.casts.positions)
        z = rule.casts.product(self.clone, self.hidden)
        bias = self.clone._buffers.get(BIAS)
        try:
            found = moe_route(z, self.clone.top_k, bias=bias, align=None, **rule.options)
        except ValueError:  # groups that it could not choose from
            return False
        (ids, order), (found_ids, found_order) = ids.sort(1), found.ids.sort(1)
        expected = weights.float().gather(1, order)
        near = torch.allclose(found.weights.gather(1, found_order), expected, rtol=1e-4)
        return near and torch.equal(found_ids, ids)


def _clone(module: nn.Module, setting: Setting, rng: torch.Generator) -> Any:
    """The module with parameters of its own, so that neither its device nor values matter."""
    clone: Any = object.__new__(type(module))
    clone.__dict__ = dict(vars(module))

    def drawn(like: Tensor) -> Tensor:
        size = like.shape[-1] ** -0.5 if like.dim() > 1 else 0.5
        return _normal(like.shape, rng) * size

    clone._parameters = {
        name: None if p is None else nn.Parameter(drawn(p).to(setting.dtype))
        for name, p in module._parameters.items()
    }
    clone._buffers = {
        name: None if buffer is None else drawn(buffer) for name, buffer in module._buffers.items()
    }
    clone.training = setting.training
    return clone


def _normal(shape: Sequence[int], rng: torch.Generator) -> Tensor:
    """float32, whatever the default dtype is: models are built under that of their weights."""
    return torch.randn(shape, generator=rng, device="cpu", dtype=torch.float32)


def _options(module: Any) -> Iterator[dict[str, Any]]:
    """What ``moe_route`` might be given, from the names that families use."""
    names = ("routed_scaling_factor", "router_scaling_factor")
    scales = [1.0, *(float(getattr(module, name)) for name in names if hasattr(module, name))]
    groups = [(1, 1)]
    of, kept = (getattr(module, name, None) for name in ("num_group", "topk_group"))
    if isinstance(of, int) and isinstance(kept, int) and of > 1:
        groups.append((of, kept))
    for (score, order, normalize), (num_groups, top_k_groups), scale in product(
        SCORES, groups, scales
    ):
        yield {
            "score": score, "order": order, "normalize": normalize,
            "num_groups": num_groups, "top_k_groups": top_k_groups, "scale": scale,
        }  # fmt: skip
