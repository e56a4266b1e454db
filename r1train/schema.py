"""`ConfigError` and `RunError` by the names they had before the package had folders."""

from r1train.config.schema import ConfigError, RunError

__all__ = ["ConfigError", "RunError"]
