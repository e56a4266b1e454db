"""Modules for code written for Liger: the same constructors, arguments and results."""

from r1kernels.nn.cross_entropy import FusedLinearCrossEntropy
from r1kernels.nn.grpo import FusedLinearGRPOLoss

__all__ = ["FusedLinearCrossEntropy", "FusedLinearGRPOLoss"]
