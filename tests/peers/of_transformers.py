"""transformers' tests of causal LMs, on models that ``hf.patch`` has patched as they were made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peers.choice import Choice
from transformers import PreTrainedModel

from r1kernels import hf

LEFT_OUT = {
    r"pipeline": "needs the hub",
    r"Integration|integration": "needs weights of the hub and a GPU",
    r"flash_attn|flash_attention|deepspeed|multi_gpu|cpu_offload|disk_offload": "needs a GPU",
    r"torchscript|torch_export|onnx": "a patched model has a forward of its own",
    r"test_(loss|.*logits.*labels|retain_grad)": "a patched model has no logits beside its loss",
}


def patched(init: Callable[..., None]) -> Callable[..., None]:
    def post_init(self: Any) -> None:
        init(self)
        if type(self).__name__.endswith("ForCausalLM"):
            hf.patch(self)

    return post_init


PreTrainedModel.post_init = patched(PreTrainedModel.post_init)


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(Choice(LEFT_OUT))
