"""Routers and experts of HuggingFace models."""
