"""Modules: layers that train in FP8 with their optimizer, and losses for code written for Liger.

The losses have the constructors, arguments and results of Liger's.
"""

from r1kernels.nn.cross_entropy import FusedLinearCrossEntropy
from r1kernels.nn.fp8_experts import FP8Experts
from r1kernels.nn.fp8_linear import FP8Linear
from r1kernels.nn.fp8_optimizer import FP8Optimizer, with_scales
from r1kernels.nn.grpo import FusedLinearGRPOLoss

__all__ = [
    "FP8Experts",
    "FP8Linear",
    "FP8Optimizer",
    "FusedLinearCrossEntropy",
    "FusedLinearGRPOLoss",
    "with_scales",
]
