"""Ops between the products of a transformer: norms, rotations and gates."""
