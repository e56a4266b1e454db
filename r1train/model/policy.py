"""The model as the learner sees it: packed sequences in, what is made of hidden states out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from r1kernels.hf import Head, packed_refusal, register_packed, with_hidden
from r1train.config.schema import ConfigError
from r1train.model.lora import merged_weights
from r1train.model.packing import Packed, pack
from r1train.model.padded import padded_pass
from r1train.model.routing import Routes

T = TypeVar("T")
PACKED = "r1_packed"  # the name that transformers knows the attention by
# Of hidden states in the two passes, relative to their norm. In few bits a token near a tie may go
# to another expert; a pass that mixes sequences differs by as much as the states themselves.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.2}


class Policy:
    """A causal LM that `r1kernels.hf.patch` has patched, sharded since or not.

    The only caller of the model in training: each pass is a call of the module itself, so that the
    hooks by which FSDP2 gathers weights run.
    """

    def __init__(self, model: PreTrainedModel, *, gradient_checkpointing: bool = False) -> None:
        self.model = model
        self.checkpointed = [
            module
            for module in model.modules()
            if gradient_checkpointing and isinstance(module, GradientCheckpointingLayer)
        ]
        reason = why_not_packed(self)
        self.packs = reason is None
        if reason is not None:
            logging.getLogger("r1train").warning(
                "the learner pads its sequences, which is slower than to pack them: %s", reason
            )
        if gradient_checkpointing:
            if not self.packs or not self.checkpointed:
                raise ConfigError(
                    "model.gradient_checkpointing = True: it needs a model whose sequences can be "
                    f"packed and whose layers HuggingFace can checkpoint ({reason})"
                )
            options = {"use_reentrant": False, "preserve_rng_state": False}  # nothing is drawn
            model.gradient_checkpointing_enable(options)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @torch.no_grad()
    def run(
        self, batch: Packed, fn: Callable[[Tensor, Head], T], routes: Routes | None = None
    ) -> T:
        """`fn(hidden, head)`, without gradients.

        hidden [T, H] are the states that predict `batch.target`. `routes` records or replays where
        a mixture of experts sends the tokens.
        """
        with self._pass(batch, routes) as call:
            found = call(fn)
        self._reshard()
        return found

    def accumulate(
        self,
        batch: Packed,
        fn: Callable[[Tensor, Head], tuple[Tensor, T]],
        routes: Routes | None = None,
    ) -> tuple[Tensor, T]:
        """The same, with a loss first in what `fn` returns: adds its gradients to `grad`.

        Returns the loss without its graph, and the rest.
        """
        with self._pass(batch, routes) as call:
            for layer in self.checkpointed:
                layer.training = True  # the layer's own flag: what is in it draws nothing
            try:
                loss, rest = call(fn)
            finally:
                for layer in self.checkpointed:
                    layer.training = False
            loss.backward()
        return loss.detach(), rest

    def _reshard(self) -> None:
        """Where no backward pass follows, FSDP2 would keep the root's weights gathered.

        Those are other tensors than the parameters that an optimizer knows.
        """
        if isinstance(self.model, FSDPModule):
            self.model.reshard()

    @contextmanager
    def _pass(
        self, batch: Packed, routes: Routes | None
    ) -> Iterator[Callable[[Callable[[Tensor, Head], Any]], Any]]:
        """A function that runs the model; within the context its gradients may be computed too."""
        if not self.packs:
            yield lambda fn: padded_pass(self.model, batch, fn, routes)
            return
        inputs = {
            "input_ids": batch.ids[None],
            "position_ids": batch.positions[None],
            "packing": batch.packing,
        }

        def call(fn: Callable[[Tensor, Head], Any]) -> Any:
            def of_predictors(hidden: Tensor, head: Head) -> Any:
                return fn(hidden[0].index_select(0, batch.predictors), head)

            return with_hidden(self.model, of_predictors, **inputs)

        with _packed_attention(self.model):
            if routes is None:
                yield call
            else:
                with routes.over_row(batch):
                    yield call

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight and persistent buffer by name, whole, as an engine takes them.

        Tied weights come under each of their names, so that no engine keeps an old head; adapters
        are added to the weights that they are of.
        """
        for name, tensor in merged_weights(self.model):
            yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def moving(self) -> dict[str, Tensor]:
        """What training changes, by name: trained weights, scales of FP8 weights, and buffers.

        A tied weight comes once, under the first of its names.
        """
        named = self.model.named_parameters(remove_duplicate=False)
        trained = {name for name, own in self.model.named_parameters() if own.requires_grad}
        still = {name for name, _ in named} - trained
        still -= {f"{name}_scale_inv" for name in trained}
        return {
            name: tensor for name, tensor in self.model.state_dict().items() if name not in still
        }

    @contextmanager
    def holding(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """Within it the model has these values of `moving`, such as a reference's."""
        moving = self.moving()
        kept = {name: tensor.clone() for name, tensor in moving.items()}
        copy(weights, moving)
        try:
            yield
        finally:
            copy(kept, moving)


@contextmanager
def _packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model takes packed rows; the cache of an engine needs what it had before."""
    register_packed()
    config: Any = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = PACKED
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.no_grad()
def copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """The values of all tensors of `target`, by name and in place."""
    for name, tensor in target.items():
        tensor.copy_(source[name])


PROBE = (
    ([0, 1, 0, 0, 1], [0, 1, 1, 0]),
    ([0, 1, 0, 0, 1], [1]),
    ([1, 1, 0], [0, 0, 1]),
)


@torch.no_grad()
def why_not_packed(policy: Policy) -> str | None:
    """Why a packed pass over this model would not be what a plain one is; None if it is."""
    model = policy.model
    if (refusal := packed_refusal(model)) is not None:
        return refusal
    if policy.device.type == "cuda" and policy.dtype.itemsize > 2:
        return f"on CUDA no kernel for packed attention takes {policy.dtype}; bfloat16 has one"
    prompts, completions = zip(*PROBE, strict=True)
    batch = pack(prompts, completions, policy.device)
    policy.packs = True
    try:
        hidden = policy.run(batch, lambda hidden, head: hidden)
    except (ValueError, TypeError) as error:  # asks of its attention what is not done, or no word
        return str(error)
    plain = []
    for prompt, completion in PROBE:
        ids = torch.tensor([[*prompt, *completion[:-1]]], device=policy.device)
        found = with_hidden(model, lambda hidden, head: hidden[0], input_ids=ids)
        plain.append(found[len(prompt) - 1 :])
    policy._reshard()
    expected = torch.cat(plain).double()
    apart = ((hidden.double() - expected).norm() / expected.norm()).item()
    if apart <= TOLERANCE[policy.dtype]:
        return None
    return (
        f"hidden states of {type(model).__name__} differ by {apart:.2g} between a packed and a "
        "plain pass: not all of its layers keep packed sequences apart"
    )
