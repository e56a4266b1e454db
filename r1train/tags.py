"""The tags of R1-Zero's format, which rewards read and tokenizers must keep."""

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
