"""What a model does between its head's output and its logits, found by watching it.

Families scale the logits under many names (Cohere multiplies by ``logit_scale``, Granite divides by
``logits_scaling``, HyperCLOVA X multiplies by the same), some cap them, some cut columns out. A
table of names would be wrong for the next one. So the model's own forward runs once, on three
tokens, with a head whose output is known: whatever comes out is a scale and a cap, or refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1kernels.hf.head.modules import open_head

# Powers of two, so that multiplying by one and dividing again rounds nothing. No cap bends the
# small one, and none lets the large one through.
SMALL, LARGE = 2.0**-20, 2.0**20
TOKENS = torch.tensor([[0, 1, 0]], device="cpu")


class LogitMap(NamedTuple):
    """logits = softcap·tanh(logit_scale·z/softcap), or logit_scale·z, of the head's output z."""

    logit_scale: float
    softcap: float | None

    def __call__(self, z: Tensor) -> Tensor:
        if self.logit_scale != 1:
            z = z * self.logit_scale
        return z if self.softcap is None else torch.tanh(z / self.softcap) * self.softcap


_KNOWN: WeakKeyDictionary[nn.Module, LogitMap] = WeakKeyDictionary()


def logit_map(model: Any) -> LogitMap:
    """``observe(model)``, remembered from the first time."""
    return _KNOWN[model] if model in _KNOWN else observe(model)


def observe(model: Any) -> LogitMap:
    """The map of a causal LM as it is now; runs the model once.

    On the meta device the backbone has no values to give: numbers take the place of its hidden
    states as of the head's output, and what is between and after them runs on the CPU.

    Raises:
        NotImplementedError: saying what the model does that the fused head would not.
        ValueError: weights of the model are NaN or infinite.
    """
    name, head = type(model).__name__, model.get_output_embeddings()
    if head is None:
        raise NotImplementedError(
            f"{name}: it has no output embeddings; load it as a causal LM, with "
            f"transformers.AutoModelForCausalLM"
        )
    open_head(head)  # or a refusal of what it is
    output, seen = _run(model, head)
    if "z" not in seen:
        raise NotImplementedError(f"{name}: its forward does not call its output embeddings")
    if "backbone" not in seen:
        raise NotImplementedError(f"{name}: its forward does not call its base model")
    if not torch.equal(seen["hidden"], seen["backbone"]):
        _check_finite(model, seen["backbone"])
        raise NotImplementedError(f"{name}: it transforms the hidden states before its head")
    found = _fit(seen["z"], output.logits)
    if found is None:
        raise NotImplementedError(f"{name}: its logits are not a scaled or capped head output")
    loss = F.cross_entropy(output.logits[0, :-1].float(), TOKENS[0, 1:].to(output.logits.device))
    if (aux_loss := output.get("aux_loss")) is not None:
        loss = loss + model.router_aux_loss_coef * aux_loss
    if not torch.allclose(loss.double(), output.loss.double(), rtol=1e-4):
        raise NotImplementedError(f"{name}: its loss is not the cross-entropy of the next token")
    _KNOWN[model] = found
    return found


def _run(model: Any, head: nn.Module) -> tuple[Any, dict[str, Tensor]]:
    """The output of the class's forward on three tokens, and what was seen on the way."""
    name, weight = type(model).__name__, head.get_parameter("weight")
    device = weight.device
    meta = device.type == "meta"
    compute_device = torch.device("cpu") if meta else device
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen["backbone"] = output.last_hidden_state

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen["hidden"], *rest = args
        return (seen["hidden"].to(device), *rest)

    def replace(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if "z" in seen:
            raise NotImplementedError(f"{name}: its head runs more than once in a forward pass")
        grid = torch.linspace(-60, 60, output.shape[-1], dtype=torch.float64, device=compute_device)
        z = torch.stack([grid, torch.full_like(grid, SMALL), torch.full_like(grid, LARGE)])[None]
        seen["z"] = z
        return z

    hooks = [
        head.register_forward_pre_hook(look),
        head.register_forward_hook(replace),
        model.base_model.register_forward_hook(keep),
    ]
    # Without values the router loss cannot be added to the loss of the logits, which has some.
    inputs: dict[str, Any] = {"output_router_logits": False} if meta and _has_routers(model) else {}
    random = [] if compute_device.type == "cpu" else [compute_device]
    tokens = TOKENS.to(compute_device)
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(random, device_type=compute_device.type),
            _numbers_for(model.base_model, head) if meta else nullcontext(),
        ):
            output = type(model).forward(
                model, input_ids=tokens, labels=tokens, use_cache=False, return_dict=True, **inputs
            )
    except Exception as error:
        if not meta or str(error).startswith(name):
            raise
        raise NotImplementedError(
            f"{name}: on the meta device its forward fails ({error}); patch it after its weights "
            f"are loaded"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return output, seen


@contextmanager
def _numbers_for(backbone: Any, head: nn.Module) -> Iterator[None]:
    """Makes ``backbone`` return hidden states on the CPU without running."""
    from transformers.modeling_outputs import MoeModelOutputWithPast

    rng, weight = torch.Generator("cpu").manual_seed(0), head.get_parameter("weight")
    shape = (*TOKENS.shape, weight.shape[1])
    hidden: Any = torch.randn(shape, generator=rng, dtype=torch.float32, device="cpu")
    hidden = hidden.to(weight.dtype)
    replaced = vars(backbone).get("forward")
    backbone.forward = lambda *args, **kwargs: MoeModelOutputWithPast(last_hidden_state=hidden)
    try:
        yield
    finally:
        del backbone.forward
        if replaced is not None:
            backbone.forward = replaced


def _has_routers(model: Any) -> bool:
    return "output_router_logits" in inspect.signature(type(model).forward).parameters


def _check_finite(model: nn.Module, hidden: Tensor) -> None:
    """Raises ValueError for hidden states that are NaN, with the reason."""
    if hidden.isfinite().all():
        return
    name = type(model).__name__
    bad = [n for n, p in model.named_parameters() if not p.float().isfinite().all()]
    if bad:
        more = f" and {len(bad) - 1} others" if len(bad) > 1 else ""
        raise ValueError(
            f"{name}: its weights are NaN or infinite ({bad[0]}{more}), so its hidden states are; "
            f"patch it after its weights are initialised or loaded"
        )
    raise ValueError(
        f"{name}: its hidden states are NaN or infinite in {hidden.dtype}, though its weights are "
        f"finite; a wider dtype may hold them"
    )


def _fit(z: Tensor, logits: Tensor) -> LogitMap | None:
    if logits.shape != z.shape:
        return None
    logits = logits.double()
    scale, far = (logits[0, 1, 0] / SMALL).item(), logits[0, 2, 0].item()
    capped = abs(far) < 0.5 * abs(scale * LARGE)
    if scale == 0 or (capped and far <= 0):
        return None
    if capped:  # the cap's own arithmetic rounds the scale
        found = LogitMap(float(f"{scale:.12g}"), far)
    else:
        found = LogitMap(scale, None)
    return found if torch.allclose(logits, found(z), rtol=1e-5, atol=0) else None
