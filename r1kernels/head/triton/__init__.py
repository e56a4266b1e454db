"""Triton kernels of the head ops."""
