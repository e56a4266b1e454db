"""The attention of HuggingFace models over packed sequences."""
