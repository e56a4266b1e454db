"""Kernels for reinforcement learning of language models, each equal to plain PyTorch.

``explain`` says which backend a call runs on and why not on a better one; ``using`` pins one.
"""

import warnings

import r1kernels.fp8.scaled_mm
import r1kernels.triton  # noqa: F401 (imports Triton's kernels when a call could run there)
from r1kernels.attention.packed_attention import packed_attention
from r1kernels.core import native
from r1kernels.core.check import checked
from r1kernels.core.op import using
from r1kernels.elementwise.gated_activation import geglu, swiglu
from r1kernels.elementwise.rms_norm import rms_norm
from r1kernels.elementwise.rope import rope
from r1kernels.explanation import explain
from r1kernels.fp8.combine import fp8_combine
from r1kernels.fp8.dequantize import fp8_dequantize
from r1kernels.fp8.experts import fp8_experts
from r1kernels.fp8.format import FP8Tensor
from r1kernels.fp8.gemm import fp8_gemm
from r1kernels.fp8.grouped_gemm import fp8_grouped_gemm
from r1kernels.fp8.grouped_wgrad import fp8_grouped_wgrad
from r1kernels.fp8.linear import fp8_linear
from r1kernels.fp8.quantize import fp8_quantize
from r1kernels.fp8.swiglu import fp8_swiglu, fp8_swiglu_backward
from r1kernels.head.candidates import Candidates, candidates
from r1kernels.head.fused_linear_loss import FusedLoss, fused_linear_loss
from r1kernels.head.head import LogProb
from r1kernels.head.kept_memory import kept_memory
from r1kernels.head.linear_cross_entropy import linear_cross_entropy
from r1kernels.head.linear_logprob import linear_logprob
from r1kernels.head.linear_reverse_kl import ReverseKL, linear_reverse_kl
from r1kernels.head.linear_sample_logprob import linear_sample_logprob
from r1kernels.head.logit_filters import filter_logits
from r1kernels.head.logprob import logprob
from r1kernels.head.pack import Packed, pack
from r1kernels.head.sample_logprob import Sampled, sample_logprob
from r1kernels.moe.balance import moe_balance_loss, update_expert_bias
from r1kernels.moe.combine import moe_combine
from r1kernels.moe.expert_parallel import moe_experts_parallel
from r1kernels.moe.experts import moe_experts
from r1kernels.moe.grouped_mm import grouped_mm
from r1kernels.moe.permute import moe_permute
from r1kernels.moe.route import Routing, moe_route
from r1kernels.moe.sort import Sorted, moe_sort
from r1kernels.policy.fused_linear_grpo_loss import fused_linear_grpo_loss
from r1kernels.policy.gdpo_advantage import gdpo_advantage
from r1kernels.policy.group_advantage import group_advantage
from r1kernels.policy.policy_loss import PolicyLoss, policy_loss
from r1kernels.policy.policy_loss_options import FusedLossOptions, LossOptions, PolicyLossOptions

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
    "ReverseKL",
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
    "linear_reverse_kl",
    "linear_sample_logprob",
    "logprob",
    "moe_balance_loss",
    "moe_combine",
    "moe_experts",
    "moe_experts_parallel",
    "moe_permute",
    "moe_route",
    "moe_sort",
    "pack",
    "packed_attention",
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
