"""FP8 in the layers of HuggingFace models and in their checkpoints."""
