"""A minimal GRPO trainer in the manner of DeepSeek-R1, on HuggingFace models and r1kernels."""

from r1train.in_process import in_process
from r1train.verify import ANSWER_TYPES, verify

__all__ = ["ANSWER_TYPES", "in_process", "verify"]
