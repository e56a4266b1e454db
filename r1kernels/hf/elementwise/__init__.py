"""Norms, rotations and gates in the layers of HuggingFace models."""
