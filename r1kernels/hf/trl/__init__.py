"""TRL's trainer on r1kernels' loss; needs TRL."""

from r1kernels.hf.trl.trainer import GRPOTrainer

__all__ = ["GRPOTrainer"]
