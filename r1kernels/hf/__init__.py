"""HuggingFace models through the fused head: no logits.

``r1kernels.hf.trl`` has TRL's trainer; it is imported by name, since it needs TRL.
"""

from r1kernels.hf.attention.packed import (
    Packing,
    pack_segments,
    packed_refusal,
    register_packed,
)
from r1kernels.hf.elementwise.elementwise import (
    explain_elementwise,
    patch_elementwise,
    unpatch_elementwise,
)
from r1kernels.hf.experts.moe import patch_moe, register_experts, unpatch_moe
from r1kernels.hf.experts.routers import Router, routers
from r1kernels.hf.experts.routing import record_routing, replay_routing
from r1kernels.hf.experts.routing_records import expert_counts
from r1kernels.hf.fp8.checkpoint import register_fp8, unregister_fp8
from r1kernels.hf.fp8.layers import explain_fp8, patch_fp8, unpatch_fp8
from r1kernels.hf.grpo import grpo_loss
from r1kernels.hf.head.head import Head, head_of
from r1kernels.hf.logprobs import logprobs
from r1kernels.hf.patched import patch, unpatch, with_hidden

__all__ = [
    "Head",
    "Packing",
    "Router",
    "expert_counts",
    "explain_elementwise",
    "explain_fp8",
    "grpo_loss",
    "head_of",
    "logprobs",
    "pack_segments",
    "packed_refusal",
    "patch",
    "patch_elementwise",
    "patch_fp8",
    "patch_moe",
    "record_routing",
    "register_experts",
    "register_fp8",
    "register_packed",
    "replay_routing",
    "routers",
    "unpatch",
    "unpatch_elementwise",
    "unpatch_fp8",
    "unpatch_moe",
    "unregister_fp8",
    "with_hidden",
]
