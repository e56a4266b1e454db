"""How a backend is judged: what correct means, and how time and memory are measured.

Shared by ``tests/`` and ``benchmarks/``, and of use to anyone who adds a kernel.
"""
