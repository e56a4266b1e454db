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
    r"test_reduce_grpo_loss|test_triton_grpo_loss": "about Liger's Triton loss of whole logits",
    r"token-luspo|luspo-token": "Liger counts padding in luspo of tokens; ours is TRL's",
}


def _call(module: type, names: tuple[str, ...], args: tuple[Any, ...], given: Any) -> Any:
    """A module's loss from the arguments of the function, which mixes both."""
    values = dict(zip(names, args, strict=False)) | given
    parameters = inspect.signature(module).parameters
    options = {name: value for name, value in values.items() if name in parameters}
    known = inspect.signature(module.forward).parameters
    return module(**options)(**{n: v for n, v in values.items() if n in known})


def grpo(*args: Any, **given: Any) -> Any:
    names = tuple(inspect.signature(LigerFusedLinearGRPOFunction.forward).parameters)
    names = names[names.index("_input") :]
    values = dict(zip(names, args, strict=False)) | given
    values["lin_weight"] = values.pop("weight")
    return _call(FusedLinearGRPOLoss, (), (), values)


NAMES = tuple(inspect.signature(ops.LigerFusedLinearCrossEntropyFunction.forward).parameters)[1:]


def cross_entropy(*args: Any, **given: Any) -> Any:
    values = dict(zip(NAMES, args, strict=False)) | given
    values["lin_weight"] = values.pop("weight", values.get("lin_weight"))
    values["_input"] = values.pop("input", values.get("_input"))
    return _call(FusedLinearCrossEntropy, (), (), values)


def whole_cross_entropy(*args: Any, **given: Any) -> Any:
    """As the autograd function: a tuple always."""
    found = cross_entropy(*args, **given)
    output = found if isinstance(found, CrossEntropyOutput) else CrossEntropyOutput(found)
    return output.loss, output.z_loss, output.token_accuracy, output.predicted_tokens


class Function:
    apply = staticmethod(whole_cross_entropy)


chunked_loss.LigerFusedLinearGRPOLoss = FusedLinearGRPOLoss
chunked_functional.liger_fused_linear_grpo = grpo
module.LigerFusedLinearCrossEntropyLoss = FusedLinearCrossEntropy
transformers.LigerFusedLinearCrossEntropyLoss = FusedLinearCrossEntropy
functional.CrossEntropyOutput = CrossEntropyOutput
functional.liger_fused_linear_cross_entropy = cross_entropy
ops.LigerFusedLinearCrossEntropyFunction = Function


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(Choice(LEFT_OUT))
