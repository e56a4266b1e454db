"""TRL's tests of its GRPO trainer, on ``r1kernels.hf.trl``; models and data are of ``hub.py``."""

from __future__ import annotations

from typing import Any

import trl
import trl.trainer
import trl.trainer.grpo_trainer
from peers.choice import Choice

from r1kernels.hf.trl import GRPOTrainer

LEFT_OUT = {
    r"iger|(loss_types|bias_correction_kl|delta_clipping)\[(.*-)?True\]": (
        "use_liger_kernel=True is refused, with a message"
    ),
    r"mask_truncated": "counts on the ids, and the many of them, of Qwen's own tokenizer",
    r"vlm|VLM|vision|Image|images|multimodal|multi_image": "only text is supported",
    r"vllm|VLLM|importance_sampling_correction": "needs vLLM",
    r"Nemotron|Cohere2|Glm4Moe|Lfm2": "a model that the local hub does not have",
    r"tools|tool_call|environment|conversational|chat_template|dataset_format": (
        "about the data and the sampling, which are TRL's in both"
    ),
    r"iterable|dataloader|eval_dataset|init_with|reward_processing|trust_remote|quantiz|bnb": (
        "about the data and the sampling, which are TRL's in both"
    ),
}

trl.GRPOTrainer = GRPOTrainer
trl.trainer.GRPOTrainer = GRPOTrainer
trl.trainer.grpo_trainer.GRPOTrainer = GRPOTrainer


def pytest_configure(config: Any) -> None:
    config.addinivalue_line("markers", "slow: of TRL's own configuration")
    config.pluginmanager.register(Choice(LEFT_OUT))
