"""A run from its recipe to its folder: the loop, checkpoints, signals."""
