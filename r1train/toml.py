"""`load_config` by the name it had before the package had folders."""

from r1train.config.recipe import load_config

__all__ = ["load_config"]
