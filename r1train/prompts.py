"""How a question becomes the text a model is asked to continue."""

from __future__ import annotations

from typing import Any

from r1train.schema import ConfigError

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""Of the format that the instruction asks for."""
R1_ZERO_INSTRUCTION = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>."
)
"""DeepSeek-R1 (arXiv 2501.12948), table 1."""

TEMPLATES = {
    "r1-zero": R1_ZERO_INSTRUCTION + " User: {question} Assistant:",
    "plain": "User: {question} Assistant:",
}


def render_prompt(question: str, template: str, tokenizer: Any = None) -> str:
    """The prompt for a question: see `TaskConfig.prompt_template`.

    "chat" renders the tokenizer's own chat template, with R1-Zero's instruction as system message.
    """
    if template == "chat":
        if tokenizer is None or tokenizer.chat_template is None:
            raise ConfigError(
                "task.prompt_template = 'chat': the model's tokenizer has no template"
            )
        messages = [
            {"role": "system", "content": R1_ZERO_INSTRUCTION},
            {"role": "user", "content": question},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(text)
    return TEMPLATES.get(template, template).replace("{question}", question)


def opens_think(prompt: str) -> bool:
    """Whether the prompt already opens the chain of thought, so that completions do not."""
    return prompt.rstrip().endswith("<think>")
