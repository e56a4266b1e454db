"""Triton kernels on FP8 tensors."""
