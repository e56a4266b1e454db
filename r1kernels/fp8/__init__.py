"""Ops on FP8 tensors, which have a scale for each block."""
