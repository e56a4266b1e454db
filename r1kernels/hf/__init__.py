"""HuggingFace models through the fused head: no logits.

``r1kernels.hf.trl`` has TRL's trainer; it is imported by name, since it needs TRL.
"""

from r1kernels.hf.grpo import grpo_loss
from r1kernels.hf.head import Head, head_of
from r1kernels.hf.logprobs import logprobs
from r1kernels.hf.patched import patch, unpatch, with_hidden

__all__ = [
    "Head",
    "grpo_loss",
    "head_of",
    "logprobs",
    "patch",
    "unpatch",
    "with_hidden",
]
