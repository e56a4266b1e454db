"""Kernels for reinforcement learning of language models, each equal to plain PyTorch.

``explain`` says which backend a call runs on and why not on a better one; ``using`` pins one.
"""

import warnings

import r1kernels.ops.fp8_scaled_mm  # noqa: F401 (a backend to pin)
from r1kernels import native
from r1kernels.check import checked
from r1kernels.explanation import explain
from r1kernels.op import using
from r1kernels.ops.candidates import Candidates, candidates
from r1kernels.ops.expert_parallel import moe_experts_parallel
from r1kernels.ops.fp8_combine import fp8_combine
from r1kernels.ops.fp8_dequantize import fp8_dequantize
from r1kernels.ops.fp8_experts import fp8_experts
from r1kernels.ops.fp8_format import FP8Tensor
from r1kernels.ops.fp8_gemm import fp8_gemm
from r1kernels.ops.fp8_grouped_gemm import fp8_grouped_gemm
from r1kernels.ops.fp8_grouped_wgrad import fp8_grouped_wgrad
from r1kernels.ops.fp8_linear import fp8_linear
from r1kernels.ops.fp8_quantize import fp8_quantize
from r1kernels.ops.fp8_swiglu import fp8_swiglu, fp8_swiglu_backward
from r1kernels.ops.fused_linear_grpo_loss import fused_linear_grpo_loss
from r1kernels.ops.fused_linear_loss import FusedLoss, fused_linear_loss
from r1kernels.ops.gated_activation import geglu, swiglu
from r1kernels.ops.gdpo_advantage import gdpo_advantage
from r1kernels.ops.group_advantage import group_advantage
from r1kernels.ops.grouped_mm import grouped_mm
from r1kernels.ops.head import LogProb
from r1kernels.ops.kept_memory import kept_memory
from r1kernels.ops.linear_cross_entropy import linear_cross_entropy
from r1kernels.ops.linear_logprob import linear_logprob
from r1kernels.ops.logit_filters import filter_logits
from r1kernels.ops.logprob import logprob
from r1kernels.ops.moe_balance import moe_balance_loss, update_expert_bias
from r1kernels.ops.moe_combine import moe_combine
from r1kernels.ops.moe_experts import moe_experts
from r1kernels.ops.moe_permute import moe_permute
from r1kernels.ops.moe_route import Routing, moe_route
from r1kernels.ops.moe_sort import Sorted, moe_sort
from r1kernels.ops.pack import Packed, pack
from r1kernels.ops.policy_loss import PolicyLoss, policy_loss
from r1kernels.ops.policy_loss_options import FusedLossOptions, LossOptions, PolicyLossOptions
from r1kernels.ops.rms_norm import rms_norm
from r1kernels.ops.rope import rope
from r1kernels.ops.sample_logprob import Sampled, sample_logprob

__version__ = "0.1.0"

__all__ = [
    "Candidates",
    "FP8Tensor",
    "FusedLoss",
    "FusedLossOptions",
    "LogProb",
    "LossOptions",
    "Packed",
    "PolicyLoss",
    "PolicyLossOptions",
    "Routing",
    "Sampled",
    "Sorted",
    "candidates",
    "checked",
    "explain",
    "filter_logits",
    "fp8_combine",
    "fp8_dequantize",
    "fp8_experts",
    "fp8_gemm",
    "fp8_grouped_gemm",
    "fp8_grouped_wgrad",
    "fp8_linear",
    "fp8_quantize",
    "fp8_swiglu",
    "fp8_swiglu_backward",
    "fused_linear_grpo_loss",
    "fused_linear_loss",
    "gdpo_advantage",
    "geglu",
    "group_advantage",
    "grouped_mm",
    "kept_memory",
    "linear_cross_entropy",
    "linear_logprob",
    "logprob",
    "moe_balance_loss",
    "moe_combine",
    "moe_experts",
    "moe_experts_parallel",
    "moe_permute",
    "moe_route",
    "moe_sort",
    "pack",
    "policy_loss",
    "rms_norm",
    "rope",
    "sample_logprob",
    "swiglu",
    "update_expert_bias",
    "using",
]

if (_reason := native.load("cpp")) is not None:
    warnings.warn(
        "r1kernels: its CPU kernels are absent, so that CPU tensors run on much slower PyTorch "
        f"references: {_reason}",
        RuntimeWarning,
        stacklevel=2,
    )
