"""How a router of a mixture of experts gets from hidden states to choices, found by watching it.

Some sixty families carry a router class of their own, most of them copies of a few. A table of
names would be wrong for the next one. So the class's own forward runs on a few random rows, with
random weights, and the rule that gives the same choices and weights is taken; if none does, the
router stays as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1kernels.ops.moe_route import MAX_EXPERTS, moe_route

BIAS = "e_score_correction_bias"
ROWS = 64

# Those that can be told apart; the softmax of the chosen first, since it equals a softmax of all
# that is divided by its sum, and does not underflow where replayed choices are unlikely ones.
SCORES = (
    ("softmax", "topk_first", False),
    ("softmax", "score_first", False),
    ("sigmoid", "score_first", True),
    ("sigmoid", "score_first", False),
    ("sqrtsoftplus", "score_first", True),
    ("sqrtsoftplus", "score_first", False),
)
# (logits, weights, ids) in the output of a router
PLACES = ((0, 1, 2), (2, 1, 0))


class RouterRule(NamedTuple):
    """Logits are ``product(module, hidden)``, the rest is ``moe_route`` with ``options``."""

    in_float32: bool  # both sides of the product are cast first
    float32_logits: bool  # the product is cast afterwards
    weights_like: str  # "float32", or the tensor whose dtype the weights have
    places: tuple[int, int, int]  # of logits, weights and ids
    score: str = "softmax"
    order: str = "score_first"
    normalize: bool = True
    num_groups: int = 1
    top_k_groups: int = 1
    scale: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        names = ("score", "order", "normalize", "num_groups", "top_k_groups", "scale")
        return {name: getattr(self, name) for name in names}

    def product(self, module: Any, hidden: Tensor) -> Tensor:
        """[..., H] → what the module's linear map makes of it, [T, E]."""
        weight, bias = module.weight, module._parameters.get("bias")
        if self.in_float32:
            weight, bias = weight.float(), None if bias is None else bias.float()
        return F.linear(hidden.reshape(-1, hidden.shape[-1]).to(weight.dtype), weight, bias)

    def output(self, hidden: Tensor, z: Tensor, weights: Tensor, ids: Tensor) -> tuple[Any, ...]:
        """The module's own output, of the product z, weights and ids."""
        logits = z.float() if self.float32_logits else z
        like = {"float32": torch.float32, "logits": z.dtype, "hidden": hidden.dtype}
        found = logits, weights.to(like[self.weights_like]), ids
        return tuple(found[self.places.index(place)] for place in range(3))


def router_rule(module: nn.Module) -> RouterRule | str:
    """The rule of a router, or the reason why it has none."""
    experts, top_k = getattr(module, "num_experts", None), getattr(module, "top_k", None)
    if not isinstance(experts, int) or not isinstance(top_k, int):
        return "it has no num_experts and top_k"
    if "forward" in vars(module):
        return "its forward was replaced"
    weight = module._parameters.get("weight")
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
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        seen = [watch(module, setting) for setting in SETTINGS]
        for rule in candidates(module):
            if all(explains(rule, module, sight) for sight in seen if sight is not None):
                return rule if all(sight is not None for sight in seen) else "it fails on rows"
    return "it does something else than moe_route"


class Setting(NamedTuple):
    dtype: torch.dtype
    autocast: bool = False
    training: bool = True

    def context(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()


# Casts show in the last two, noise in training.
SETTINGS = (
    Setting(torch.float32),
    Setting(torch.float32, training=False),
    Setting(torch.bfloat16),
    Setting(torch.float32, autocast=True),
)


class Sight(NamedTuple):
    """What a router made of some rows."""

    setting: Setting
    twin: Any  # the router with random weights
    hidden: Tensor
    output: tuple[Tensor, ...]


def watch(module: nn.Module, setting: Setting) -> Sight | None:
    """Runs the forward of the module's class on random rows, on the CPU; None if it cannot."""
    rng = torch.Generator().manual_seed(0)
    twin = _twin(module, setting, rng)
    width = module.weight.shape[1]
    hidden = torch.randn(ROWS, width, generator=rng).to(setting.dtype)
    with setting.context():
        try:
            output = type(module).forward(twin, hidden.clone())
        except Exception:  # of whatever kind: it is somebody else's code
            return None
    return Sight(setting, twin, hidden, output)


def _twin(module: nn.Module, setting: Setting, rng: torch.Generator) -> Any:
    """The module with parameters of its own, so that neither its device nor values matter."""
    twin = object.__new__(type(module))
    twin.__dict__ = dict(vars(module))
    width = module.weight.shape[1]
    sizes = {"weight": width**-0.5, "bias": 0.5, BIAS: 0.5}

    def drawn(name: str, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=rng) * sizes[name]

    twin._parameters = {
        name: None if p is None else nn.Parameter(drawn(name, p).to(setting.dtype))
        for name, p in module._parameters.items()
    }
    twin._buffers = {name: drawn(name, buffer) for name, buffer in module._buffers.items()}
    twin.training = setting.training
    return twin


def candidates(module: Any) -> Iterator[RouterRule]:
    scales = [1.0]
    for name in ("routed_scaling_factor", "router_scaling_factor"):
        if isinstance(scale := getattr(module, name, None), int | float) and scale != 1:
            scales.append(float(scale))
    groups = [(1, 1)]
    of, kept = (getattr(module, name, None) for name in ("num_group", "topk_group"))
    if isinstance(of, int) and isinstance(kept, int) and of > 1 and module.num_experts % of == 0:
        groups.append((of, kept))
    casts = product((True, False), (True, False), ("float32", "logits", "hidden"), PLACES)
    choices = list(product(SCORES, groups, scales))
    for cast, (score, group, scale) in product(casts, choices):
        yield RouterRule(*cast, *score, *group, scale)


def explains(rule: RouterRule, module: Any, sight: Sight) -> bool:
    """Whether the rule gives the output that was seen.

    In bfloat16 a router may choose by scores it has rounded, so there only dtypes and logits count.
    """
    if not isinstance(sight.output, tuple) or len(sight.output) != 3:
        return False
    logits, weights, ids = (sight.output[place] for place in rule.places)
    with sight.setting.context():
        z = rule.product(sight.twin, sight.hidden)
        if z.shape != logits.shape or weights.shape != ids.shape or ids.dtype != torch.int64:
            return False
        bias = sight.twin._buffers.get(BIAS)
        try:
            routing = moe_route(z, module.top_k, bias=bias, align=None, **rule.options)
        except ValueError:  # groups it could not choose from
            return False
        found = rule.output(sight.hidden, z, routing.weights, routing.ids)
    if any(a.dtype != b.dtype for a, b in zip(found, sight.output, strict=True)):
        return False
    if not torch.equal(found[rule.places[0]], logits) or ids.shape != routing.ids.shape:
        return False
    if z.dtype != torch.float32 or sight.setting.dtype != torch.float32:
        return True
    ids, place = ids.sort(1)
    found_ids, found_place = routing.ids.sort(1)
    close = torch.allclose(
        routing.weights.gather(1, found_place), weights.float().gather(1, place), rtol=1e-4
    )
    return torch.equal(ids, found_ids) and close
