"""The output head of a HuggingFace model, and what it does to its logits."""
