"""Triton kernels of norms, rotations and gates."""
