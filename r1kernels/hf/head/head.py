"""A causal LM's head as r1kernels' functions take it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from r1kernels.hf.head.float32_head import Float32Head
from r1kernels.hf.head.logit_map import LogitMap, logit_map
from r1kernels.hf.head.modules import Adapter, open_head
from r1kernels.hf.unwrap import unwrap


@dataclass(frozen=True)
class Head:
    """``linear_logprob(head.rows(hidden), head.weight, target, **head.options)``.

    weight: [V, H], or [V, H + r] where LoRA adapters of rank r sit on the head: their B is
    appended to the columns, and their A to the rows by ``rows``. That is exact, where adding the
    product to the weight would round a small update away in bfloat16. It costs a copy of the
    weight, and a gradient of its size, in every pass.
    """

    weight: Tensor
    """[V, H + r], under autocast in its dtype."""
    bias: Tensor | None
    """[V]"""
    map: LogitMap
    """What the model does to its logits: scale and softcap."""
    adapters: tuple[Adapter, ...]
    """LoRA adapters of the head, of the ranks that r is the sum of."""
    in_float32: bool = False
    """Under autocast too: the model casts its head to float32."""

    @property
    def options(self) -> dict[str, Any]:
        """bias, logit_scale and softcap, which every function with a linear head takes."""
        return {"bias": self.bias, **self.map._asdict()}

    def precision(self) -> Any:
        """A context for whatever is computed with the head."""
        kind = self.weight.device.type
        return torch.autocast(kind, enabled=False) if self.in_float32 else nullcontext()

    def rows(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] → what ``weight`` multiplies, [..., H + r], in its dtype."""
        parts = [hidden, *(adapter.rows(hidden) for adapter in self.adapters)]
        parts = [part.to(self.weight.dtype) for part in parts]
        return torch.cat(parts, -1) if self.adapters else parts[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] in float32, of the few rows one samples from."""
        return self.map(F.linear(self.rows(hidden), self.weight, self.bias).float())


def head_of(model: Any) -> Head:
    """The head of a HuggingFace causal LM, or of peft's wrapper, as it is now, adapters included.

    The output embeddings must be a plain ``nn.Linear``, alone or under peft's LoRA or
    ``modules_to_save``. Under autocast the head is cast as ``nn.Linear`` would be.

    Raises:
        NotImplementedError: naming what the fused head cannot honour.
    """
    model = unwrap("head_of", model)
    return read_head(model, logit_map(model))


def read_head(model: Any, logits: LogitMap) -> Head:
    """``head_of`` of a model whose ``LogitMap`` is known."""
    linear, adapters = open_head(model.get_output_embeddings())
    weight: Tensor = linear.weight
    bias: Tensor | None = linear.bias
    device = weight.device.type
    in_float32 = isinstance(linear, Float32Head)
    if in_float32:
        weight, bias = weight.float(), None if bias is None else bias.float()
    elif torch.is_autocast_enabled(device):
        weight = weight.to(torch.get_autocast_dtype(device))
        bias = None if bias is None else bias.to(weight.dtype)
    if adapters:
        weight = torch.cat([weight, *(a.up.weight.to(weight.dtype) for a in adapters)], 1)
    return Head(weight, bias, logits, adapters, in_float32)
