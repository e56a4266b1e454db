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

from r1kernels.head.linear_cross_entropy import linear_cross_entropy
from r1kernels.hf.bound import Bound
from r1kernels.hf.elementwise.elementwise import (
    patch_elementwise,
    patched_modules,
    unpatch_elementwise,
)
from r1kernels.hf.experts.moe import patch_moe, unpatch_moe
from r1kernels.hf.fp8.layers import patch_fp8, unpatch_fp8
from r1kernels.hf.head.head import Head, read_head
from r1kernels.hf.head.logit_map import observe
from r1kernels.hf.unwrap import unwrap

M = TypeVar("M")
T = TypeVar("T")

# What a causal LM hands to its loss function.
LABELS = ("labels", "shift_labels", "num_items_in_batch", "ignore_index")
# What marks a model whose parts are patched, and undoes it.
PARTS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("_r1kernels_moe", unpatch_moe),
    ("_r1kernels_fp8", unpatch_fp8),
    ("_r1kernels_elementwise", unpatch_elementwise),
)


def patch(model: M, fp8: bool | str | Sequence[str] = False, *, elementwise: bool = False) -> M:
    """Make ``model(input_ids, labels=…)`` compute its loss without logits.

    The result is the model's own output class with the same loss (the cross-entropy in float32,
    ``num_items_in_batch``, ``shift_labels``, ``ignore_index`` and router losses included), and with
    ``logits`` None, so metrics that are made of logits need the unpatched model; with
    ``return_dict=False`` it is the tuple of that, loss first. Without labels everything is as
    before, ``generate`` included. Adapters and weights are looked up in each call. A mixture of
    experts is patched too, as by ``patch_moe``. A patched model can be copied, pickled and sent to
    other processes, and it may be on the meta device until its weights are loaded.

    Args:
        model: a HuggingFace causal LM whose output embeddings are an ``nn.Linear``, or peft's
            wrapper of one. Patch it before a trainer, DDP or ``torch.compile`` wraps it.
        fp8: True, "auto" or patterns of names: layers that compute in FP8, see ``patch_fp8``.
        elementwise: norms, rotary positions, gated activations and residual adds as fused ops,
            see ``patch_elementwise``.

    Returns:
        ``model``. A second call with the same options changes nothing.

    Raises:
        NotImplementedError: the model does something the fused head would not; says what.
        ValueError: the model is patched already with other options, or its weights are NaN.
        TypeError: it is no HuggingFace model, or is wrapped; says what to do.
    """
    causal = unwrap("patch", model)
    if (state := vars(causal).get("_r1kernels")) is not None:
        for name, value in (("fp8", fp8), ("elementwise", elementwise)):
            if (before := getattr(state, name)) != value:
                raise ValueError(
                    f"patch: {type(causal).__name__}: {name}: expected an unpatched model, or the "
                    f"{name} that it is patched with, {before}; got {value}; call unpatch(model) "
                    f"first"
                )
        return model
    given = {name for name, _ in PARTS if name in vars(causal)}
    try:
        # FP8 first, and the experts next: FP8 weights may run in no other way, and State runs them.
        if fp8:
            patch_fp8(causal, fp8)
        patch_moe(causal)
        if elementwise:
            patch_elementwise(causal)
        causal._r1kernels = State(causal, fp8, elementwise)
    except Exception:
        _unpatch_parts(causal, given)
        raise
    causal.forward = Forward(_forward, causal)
    return model


def unpatch(model: M) -> M:
    """Undo ``patch`` and return ``model``.

    Raises:
        ValueError: the model is not patched, or its forward, or one that ``elementwise`` put into
            a part of it, was replaced again since.
    """
    causal = unwrap("unpatch", model)
    state, forward = vars(causal).get("_r1kernels"), vars(causal).get("forward")
    if state is None:
        raise ValueError(f"unpatch: {type(causal).__name__}: expected a patched model")
    if not _is_ours(forward):
        raise ValueError(f"unpatch: {type(causal).__name__}: its forward was replaced since")
    patched_modules("unpatch", causal)  # which raises before anything is undone
    state.hook.remove()
    del causal.forward, causal._r1kernels
    _unpatch_parts(causal, set())
    if state.replaced is not None:
        causal.forward = state.replaced
    return model


def _unpatch_parts(model: Any, given: set[str]) -> None:
    """Undo the patches of a model's parts, but what of them was there before."""
    for name, undo in PARTS:
        if name in vars(model) and name not in given:
            undo(model)


def with_hidden(model: Any, fn: Callable[[Tensor, Head], T], **inputs: Any) -> T:
    """Runs a patched model on ``inputs`` and returns ``fn(hidden, head)``.

    hidden is [B, S, H]: what the head would have been given. Under prompt tuning S counts the
    virtual tokens too, which come first: count positions from the end. ``fn`` runs inside the
    model's forward, so it works through DDP and whatever else gathers parameters for a forward
    pass.

    Raises:
        ValueError: the model is not patched.
    """
    found: T = run_with_hidden(model, fn, **inputs)["through_head"]
    return found


def run_with_hidden(model: Any, fn: Callable[[Tensor, Head], Any], **inputs: Any) -> Any:
    """The model's own output, and ``fn(hidden, head)`` as its ``through_head``; see above."""
    try:
        output = model(**{"use_cache": False, **inputs}, through_head=fn)
    except TypeError as error:
        if "through_head" not in str(error):
            raise
        output = {}
    if isinstance(output, Tensor) or "through_head" not in output:
        name = type(model).__name__
        raise ValueError(
            f"with_hidden: {name}: expected a patched model; call hf.patch(model) first"
        )
    return output


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self._r1kernels(*args, **kwargs)


def _unbound(signature: inspect.Signature) -> Any:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._r1kernels(*args, **kwargs)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward


class Forward(Bound):
    """A patched model's forward, with the signature of the one it replaces.

    Not made by ``functools.wraps``: accelerate would take it for a wrapper of its own and remove
    it.
    """

    __slots__ = ()

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.owner._r1kernels.original())

    @property
    def __func__(self) -> Any:
        """What accelerate wraps, and binds to the model again when it takes its wrappers off."""
        bound = self.__signature__
        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return _unbound(bound.replace(parameters=[first, *bound.parameters.values()]))


def _is_ours(forward: Any) -> bool:
    made = _unbound(inspect.Signature()).__code__
    return isinstance(forward, Forward) or getattr(forward, "__code__", None) is made


class State:
    """What a patched model needs to know, and its forward."""

    def __init__(
        self, model: Any, fp8: bool | str | Sequence[str], elementwise: bool = False
    ) -> None:
        self.model, self.fp8, self.elementwise = model, fp8, elementwise
        self.logits = observe(model)
        self.replaced = vars(model).get("forward")  # someone else's patch
        self.parameters = tuple(inspect.signature(self.original()).parameters)
        if "logits_to_keep" not in self.parameters:
            name = type(model).__name__
            raise NotImplementedError(f"patch: {name}: its forward does not take logits_to_keep")
        self.listening = False
        self.hidden: Any = None
        self.hook = model.base_model.register_forward_hook(self.listen)

    def original(self) -> Any:
        """The forward that was patched."""
        if self.replaced is not None:
            return self.replaced
        return MethodType(type(self.model).forward, self.model)

    def run_original(self, **kwargs: Any) -> Any:
        if self.replaced is not None:
            return self.replaced(**kwargs)
        return type(self.model).forward(self.model, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        state = vars(self) | {"hidden": None}
        if isinstance(self.replaced, MethodType):  # would be pickled as the method of the class
            state["replaced"] = self.replaced.__func__
            state["rebind"] = True
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.pop("rebind", False):
            state["replaced"] = MethodType(state["replaced"], state["model"])
        vars(self).update(state)

    def listen(self, module: Any, args: Any, output: Any) -> None:
        if self.listening:
            self.hidden = output.last_hidden_state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kwargs = dict(zip(self.parameters, args, strict=False)) | kwargs
        fn = kwargs.pop("through_head", None)
        if fn is None and kwargs.get("labels") is None:
            return self.run_original(**kwargs)
        as_tuple = kwargs.pop("return_dict", None) is False
        labels = {name: kwargs.pop(name, None) for name in LABELS}
        keep = kwargs.pop("logits_to_keep", 0)

        none = torch.empty(0, dtype=torch.long, device=self.model.device)
        self.listening = True
        try:
            output = self.run_original(**kwargs, logits_to_keep=none, return_dict=True)
        finally:
            self.listening, hidden, self.hidden = False, self.hidden, None
        hidden = hidden[:, slice(-keep, None) if isinstance(keep, int) else keep]
        head = read_head(self.model, self.logits)

        with head.precision():
            loss = None if labels["labels"] is None else causal_loss(hidden, head, **labels)
            found = None if fn is None else fn(hidden, head)
        if loss is not None and (aux_loss := output.get("aux_loss")) is not None:
            loss = loss + self.model.router_aux_loss_coef * aux_loss
        fields = {name: value for name, value in output.items() if name != "logits"}
        output = type(output)(**fields | {"loss": loss})  # in the class's own order, loss first
        if fn is not None:
            output["through_head"] = found
            return output
        return output.to_tuple() if as_tuple else output


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
