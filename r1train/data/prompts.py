"""How a question becomes the text a model is asked to continue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from r1train.config.schema import ConfigError

if TYPE_CHECKING:
    from r1train.data.fields import Message

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
REPLACED = "system messages are replaced by the instruction of the template"
"""Said of rows where the template is not "chat"."""


def render_prompt(prompt: str | Sequence[Message], template: str, tokenizer: Any = None) -> str:
    """The prompt for a question, or for a conversation: see `TaskConfig.prompt_template`.

    "chat" renders the tokenizer's own chat template, with R1-Zero's instruction as system message
    unless the conversation has one; an empty one stands for none. Where the template has no system
    role, refusing or dropping it, that message is put before the first of the user. Other templates
    ask the last message.
    """
    messages = [("user", prompt)] if isinstance(prompt, str) else list(prompt)
    if template != "chat":
        return TEMPLATES.get(template, template).replace("{question}", messages[-1][1])
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "task.prompt_template = 'chat': the model's tokenizer has no chat template; give it "
            "one (chat_template.jinja in its folder), or choose 'r1-zero', 'plain' or a text"
        )
    if messages[0][0] != "system":
        messages.insert(0, ("system", R1_ZERO_INSTRUCTION))
    attempts = [messages, _without_system_role(messages)] if messages[0][1] else [messages[1:]]
    failure = ""
    for attempt in attempts:
        try:
            text = _apply(tokenizer, attempt)
        except Exception as error:  # the template is a program, and raises what it likes
            failure = f"{type(error).__name__}: {error}"
            continue
        if attempt is not messages or not _drops_system(tokenizer, messages, text):
            return text
    roles = ", ".join(role for role, _ in messages)
    raise ConfigError(
        f"task.prompt_template = 'chat': the tokenizer's chat template cannot render messages of "
        f"{roles}: {failure}; choose 'r1-zero', 'plain' or a text with {{question}}"
    )


def with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """The conversation with that system message, unless it has one of its own."""
    if system is None or messages[0][0] == "system":
        return messages
    return (("system", system), *messages)


def opens_think(prompt: str) -> bool:
    """Whether the prompt already opens the chain of thought, so that completions do not."""
    return prompt.rstrip().endswith("<think>")


def _without_system_role(messages: Sequence[Message]) -> list[Message]:
    """The system message at the top of the first message after it."""
    (_, system), (role, content), *rest = messages
    return [(role, f"{system}\n\n{content}"), *rest]


def _drops_system(tokenizer: Any, messages: Sequence[Message], text: str) -> bool:
    """Whether the template makes the same `text` of the messages without the system's."""
    try:
        return _apply(tokenizer, messages[1:]) == text
    except Exception:  # it needs one
        return False


def _apply(tokenizer: Any, messages: Sequence[Message]) -> str:
    named = [{"role": role, "content": content} for role, content in messages]
    return str(tokenizer.apply_chat_template(named, tokenize=False, add_generation_prompt=True))
