"""Triton kernels of the policy losses and advantages."""
