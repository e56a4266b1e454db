"""A minimal GRPO trainer in the manner of DeepSeek-R1, on HuggingFace models and r1kernels."""
