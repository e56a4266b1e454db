"""Attention over packed sequences that share prefixes."""
