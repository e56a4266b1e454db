"""Liger's tests of its fused losses, on ``r1kernels.nn``."""

from __future__ import annotations

import inspect
from typing import Any

import liger_kernel.chunked_loss as chunked_loss
import liger_kernel.chunked_loss.functional as chunked_functional
import liger_kernel.ops as ops
import liger_kernel.transformers as transformers
import liger_kernel.transformers.functional as functional
import liger_kernel.transformers.fused_linear_cross_entropy as module
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction
from peers.choice import Choice

from r1kernels.nn import FusedLinearCrossEntropy, FusedLinearGRPOLoss
from r1kernels.nn.cross_entropy import CrossEntropyOutput

LEFT_OUT = {
    r"8-128-1024-4096": "a shape for GPUs; the other of each test has odd sizes",
    r"test_selective_chunk|large_seq_exercises_chunking": "about the chunks of Liger's own code",
    r"test_functional_correctness": "its log-probabilities differ by over 20, ours are bounded",
    r"test_reduce_grpo_loss|test_triton_grpo_loss": "about Liger's Triton loss of whole logits",
    r"token-luspo|sequence-luspo-\w+-\w+-\w+-0\.1-|is_ratio\[0\.1-luspo": (
        "Liger counts padding in luspo of tokens, and in its KL term; ours is TRL's"
    ),
}


class GRPOLoss(FusedLinearGRPOLoss):
    """With Liger's metric for cispo, which leaves the capped tokens of A < 0 out."""

    def forward(self, *args: Any, **given: Any) -> Any:
        loss, metrics = super().forward(*args, **given)
        if self.loss_type == "cispo":
            given |= dict(zip(inspect.signature(super().forward).parameters, args, strict=False))
            given["advantages"] = given["advantages"].clamp(max=0)
            *_, negative = super().forward(**given)[1]
            metrics = (*metrics[:-1], metrics[-1] - negative)
        return loss, metrics


def _named(function: Any, args: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of Liger's autograd functions, which take the module's and its forward's, by name.

    The weight of the head, where it is among them, under the name that the modules have for it.
    """
    names = [*inspect.signature(function.forward).parameters]
    values = dict(zip(names[names.index("_input") :], args, strict=False)) | given
    old = {"weight": "lin_weight", "input": "_input"}
    return {old.get(name, name): value for name, value in values.items()}


def _loss(module: type, values: dict[str, Any]) -> Any:
    options, inputs = (
        {name: values[name] for name in inspect.signature(call).parameters if name in values}
        for call in (module, module.forward)
    )
    return module(**options)(**inputs)


def grpo(*args: Any, **given: Any) -> Any:
    return _loss(FusedLinearGRPOLoss, _named(LigerFusedLinearGRPOFunction, args, given))


CROSS_ENTROPY = ops.LigerFusedLinearCrossEntropyFunction


def cross_entropy(*args: Any, **given: Any) -> Any:
    return _loss(FusedLinearCrossEntropy, _named(CROSS_ENTROPY, args, given))


def whole_cross_entropy(*args: Any, **given: Any) -> Any:
    """As the autograd function: a tuple always."""
    found = cross_entropy(*args, **given)
    output = found if isinstance(found, CrossEntropyOutput) else CrossEntropyOutput(found)
    return output.loss, output.z_loss, output.token_accuracy, output.predicted_tokens


class Function:
    apply = staticmethod(whole_cross_entropy)


chunked_loss.LigerFusedLinearGRPOLoss = GRPOLoss
chunked_functional.liger_fused_linear_grpo = grpo
module.LigerFusedLinearCrossEntropyLoss = FusedLinearCrossEntropy
transformers.LigerFusedLinearCrossEntropyLoss = FusedLinearCrossEntropy
functional.CrossEntropyOutput = CrossEntropyOutput
functional.liger_fused_linear_cross_entropy = cross_entropy
ops.LigerFusedLinearCrossEntropyFunction = Function


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(Choice(LEFT_OUT))
