"""TRL's GRPOTrainer on r1kernels' loss: the trainer, its options and its logs stay TRL's.

Needs trl and datasets. The model and its tokenizer are made on the spot; give the name of a folder
instead, as to TRL's own trainer.
"""

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig

from r1kernels.hf.trl import GRPOTrainer

WORDS = ["<pad>", "<eos>", *"abcdefghijklmnopqrstuvwxyz"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def make_model() -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(WORDS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )


def share_of_a(completions: list[str], **_: object) -> list[float]:
    return [text.count("a") / 8 for text in completions]


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            make_model(),
            share_of_a,
            GRPOConfig(
                folder,
                use_cpu=True,  # these four are for the tiny model on a CPU
                bf16=False,
                report_to="none",
                save_strategy="no",
                per_device_train_batch_size=32,
                num_generations=8,
                max_completion_length=8,
                max_steps=15,
                learning_rate=2e-2,
                logging_steps=5,
                loss_type="dapo",
            ),
            train_dataset=Dataset.from_dict({"prompt": ["b c", "d e", "f g", "h i"] * 16}),
            processing_class=make_tokenizer(),
        )
        trainer.train()
    for line in trainer.state.log_history:
        if "reward" in line:
            print(f"step {line['step']}: reward {line['reward']:.2f}")


if __name__ == "__main__":
    main()
