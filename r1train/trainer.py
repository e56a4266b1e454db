"""`run` by the name it had before the package had folders."""

from r1train.run.runner import run

__all__ = ["run"]
