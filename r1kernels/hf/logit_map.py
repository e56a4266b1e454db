"""What a model does between its head's output and its logits, found by watching it.

Families scale the logits under many names (Cohere multiplies by ``logit_scale``, Granite divides by
``logits_scaling``, HyperCLOVA X multiplies by the same), some cap them, some cut columns out. A
table of names would be wrong for the next one. So the model's own forward runs once, on three
tokens, with a head whose output is known: whatever comes out is a scale and a cap, or refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1kernels.hf.modules import open_head

# Powers of two, so that multiplying by one and dividing again rounds nothing. No cap bends the
# small one, and none lets the large one through.
SMALL, LARGE = 2.0**-20, 2.0**20


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
    """``watch(model)``, remembered from the first time."""
    return _KNOWN[model] if model in _KNOWN else watch(model)


def watch(model: Any) -> LogitMap:
    """The map of a causal LM as it is now; runs the model once.

    Raises:
        NotImplementedError: saying what the model does that the fused head would not.
    """
    name, head = type(model).__name__, model.get_output_embeddings()
    open_head(head)  # or a refusal of what it is
    seen: dict[str, Tensor] = {}

    def replace(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if "z" in seen:
            raise NotImplementedError(f"{name}: its head runs more than once in a forward pass")
        vocabulary = output.shape[-1]
        grid = torch.linspace(-60, 60, vocabulary, dtype=torch.float64, device=output.device)
        z = torch.stack([grid, torch.full_like(grid, SMALL), torch.full_like(grid, LARGE)])[None]
        seen["hidden"], seen["z"] = args[0], z
        return z

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen["backbone"] = output.last_hidden_state

    labels = torch.tensor([[0, 1, 0]], device=head.weight.device)
    hooks = [head.register_forward_hook(replace), model.base_model.register_forward_hook(keep)]
    devices = [] if labels.device.type == "cpu" else [labels.device]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices, device_type=labels.device.type):
            output = type(model).forward(
                model, input_ids=labels, labels=labels, use_cache=False, return_dict=True
            )
    finally:
        for hook in hooks:
            hook.remove()
    if "z" not in seen:
        raise NotImplementedError(f"{name}: its forward does not call its output embeddings")
    if "backbone" not in seen:
        raise NotImplementedError(f"{name}: its forward does not call its base model")
    if not torch.equal(seen["hidden"], seen["backbone"]):
        raise NotImplementedError(f"{name}: it transforms the hidden states before its head")
    found = _fit(seen["z"], output.logits)
    if found is None:
        raise NotImplementedError(f"{name}: its logits are not a scaled or capped head output")
    loss = F.cross_entropy(output.logits[0, :-1].float(), labels[0, 1:])
    if (aux_loss := output.get("aux_loss")) is not None:
        loss = loss + model.router_aux_loss_coef * aux_loss
    if not torch.allclose(loss.double(), output.loss.double(), rtol=1e-4):
        raise NotImplementedError(f"{name}: its loss is not the cross-entropy of the next token")
    _KNOWN[model] = found
    return found


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
