"""A causal LM whose loss goes through the fused head, on this instance alone.

The class's own forward still runs, so that its router losses, caches and outputs are what they
were; it is only asked to keep no position for its head, whose input is taken from the backbone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from r1kernels.hf.fp8 import patch_fp8, unpatch_fp8
from r1kernels.hf.head import Head, read_head
from r1kernels.hf.logit_map import watch
from r1kernels.hf.modules import unwrap
from r1kernels.hf.moe import patch_moe, unpatch_moe
from r1kernels.ops.linear_cross_entropy import linear_cross_entropy

T = TypeVar("T")

# What a causal LM hands to its loss function.
LABELS = ("labels", "shift_labels", "num_items_in_batch", "ignore_index")


def patch(model: Any, fp8: bool | str | Sequence[str] = False) -> None:
    """Make ``model(input_ids, labels=…)`` compute its loss without logits.

    The result is the model's own output class with the same loss (the cross-entropy in float32,
    ``num_items_in_batch``, ``shift_labels``, ``ignore_index`` and router losses included), and with
    ``logits`` None, so metrics that are made of logits need the unpatched model. Without labels
    everything is as before, ``generate`` included. Adapters and weights are looked up in each call.
    A mixture of experts is patched too, as by ``patch_moe``.

    Args:
        model: a HuggingFace causal LM whose output embeddings are an ``nn.Linear``, or peft's
            wrapper of one. Patch it before a trainer, DDP or ``torch.compile`` wraps it.
        fp8: True, "auto" or patterns of names: layers that compute in FP8, see ``patch_fp8``.

    Raises:
        NotImplementedError: the model does something the fused head would not; says what.
        ValueError: the model is patched already.
    """
    model = unwrap(model)
    if "_r1kernels" in vars(model):
        raise ValueError(f"patch: {type(model).__name__}: expected an unpatched model")
    if fp8:  # first, and the experts next: FP8 weights may run in no other way, and State runs them
        patch_fp8(model, fp8)
    given = "_r1kernels_moe" in vars(model)
    if not given:
        patch_moe(model)
    try:
        model._r1kernels = State(model)
    except NotImplementedError:
        if not given:
            unpatch_moe(model)
        if fp8:
            unpatch_fp8(model)
        raise
    model.forward = MethodType(model._r1kernels.method, model)


def unpatch(model: Any) -> None:
    """Undo ``patch``.

    Raises:
        ValueError: the model is not patched, or its forward was replaced again since.
    """
    model = unwrap(model)
    state, forward = vars(model).get("_r1kernels"), vars(model).get("forward")
    if state is None:
        raise ValueError(f"unpatch: {type(model).__name__}: expected a patched model")
    if getattr(forward, "__func__", None) is not state.method:
        raise ValueError(f"unpatch: {type(model).__name__}: its forward was replaced since")
    state.hook.remove()
    del model.forward, model._r1kernels
    if "_r1kernels_moe" in vars(model):
        unpatch_moe(model)
    if "_r1kernels_fp8" in vars(model):
        unpatch_fp8(model)
    if state.replaced is not None:
        model.forward = state.replaced


def with_hidden(model: Any, fn: Callable[[Tensor, Head], T], **inputs: Any) -> T:
    """Runs a patched model on ``inputs`` and returns ``fn(hidden, head)``.

    hidden is [B, S, H]: what the head would have been given. ``fn`` runs inside the model's
    forward, so it works through DDP and whatever else gathers parameters for a forward pass.

    Raises:
        ValueError: the model is not patched.
    """
    output = model(**{"use_cache": False, **inputs}, through_head=fn)
    if "through_head" not in output:
        raise ValueError(f"with_hidden: {type(model).__name__}: expected a patched model")
    found: T = output["through_head"]
    return found


def _method(model: Any) -> Any:
    """A forward for ``model`` alone, with the signature of the present one.

    A method and not a closure over the model, so that a deep copy of the model runs its own. Not
    made by ``functools.wraps``: accelerate would take it for a wrapper of its own and remove it.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._r1kernels(*args, **kwargs)

    unbound = getattr(model.forward, "__func__", model.forward)
    forward.__signature__ = inspect.signature(unbound)  # type: ignore[attr-defined]
    return forward


class State:
    """What a patched model needs to know, and its forward."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.logits = watch(model)
        self.replaced = vars(model).get("forward")  # someone else's patch
        self.original = model.forward
        self.method = _method(model)
        self.parameters = tuple(inspect.signature(model.forward).parameters)
        if "logits_to_keep" not in self.parameters:
            name = type(model).__name__
            raise NotImplementedError(f"patch: {name}: its forward does not take logits_to_keep")
        self.listening = False
        self.hidden: Any = None
        self.hook = model.base_model.register_forward_hook(self.listen)

    def listen(self, module: Any, args: Any, output: Any) -> None:
        if self.listening:
            self.hidden = output.last_hidden_state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs = dict(zip(self.parameters, args, strict=False)) | kwargs
        fn = kwargs.pop("through_head", None)
        if fn is None and kwargs.get("labels") is None:
            return self.original(**kwargs)
        if kwargs.pop("return_dict", None) is False:
            raise NotImplementedError("a patched model: return_dict: expected True, got False")
        labels = {name: kwargs.pop(name, None) for name in LABELS}
        keep = kwargs.pop("logits_to_keep", 0)

        none = torch.empty(0, dtype=torch.long, device=self.model.device)
        self.listening = True
        try:
            output = self.original(**kwargs, logits_to_keep=none, return_dict=True)
        finally:
            self.listening, hidden, self.hidden = False, self.hidden, None
        hidden = hidden[:, slice(-keep, None) if isinstance(keep, int) else keep]
        head = read_head(self.model, self.logits)

        loss = None
        if labels["labels"] is not None:
            loss = causal_loss(hidden, head, **labels)
            if (aux_loss := output.get("aux_loss")) is not None:
                loss = loss + self.model.router_aux_loss_coef * aux_loss
        fields = {name: value for name, value in output.items() if name != "logits"}
        output = type(output)(**fields | {"loss": loss})
        if fn is not None:
            output["through_head"] = fn(hidden, head)
        return output


def causal_loss(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    shift_labels: Tensor | None = None,
    num_items_in_batch: float | Tensor | None = None,
    ignore_index: int | None = None,
) -> Tensor:
    """transformers' ``ForCausalLMLoss`` of [B, S, H] hidden states and [B, S] labels.

    shift_labels: [B, S], those of the next token, instead of labels. num_items_in_batch: divides
    the sum; by default the labels of this call that are not ignored.
    """
    ignore_index = -100 if ignore_index is None else ignore_index
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[:, 1:]
    loss = linear_cross_entropy(
        head.rows(hidden).flatten(0, 1),
        head.weight,
        shift_labels.to(hidden.device).flatten(),
        ignore_index=ignore_index,
        reduction="mean" if num_items_in_batch is None else "sum",
        **head.options,
    )
    if num_items_in_batch is None:
        return loss
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(loss.device)
    return loss / num_items_in_batch
