"""What a row says under the names that its data set has chosen: text, chat messages, numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from r1train.data.sources.base import Number, Row, RowError

Message = tuple[str, str]
"""Role and content."""

PROMPT_FIELDS = ("prompt", "question")


def prompt_key(row: Row, field: str | None) -> str:
    """The key of the prompt: `field`, or the one of "prompt" and "question" that is there; null is
    what a table has where there is none."""
    if field is not None:
        return field
    found = [name for name in PROMPT_FIELDS if row.get(name) is not None]
    if len(found) > 1:
        raise RowError('"prompt" and "question" are both there: say which with prompt_field')
    return found[0] if found else PROMPT_FIELDS[0]


def lookup(row: Row, field: str, option: str) -> Any:
    """The value of a key, or of a path of keys with dots between them."""
    if field in row:
        return row[field]
    inner: Any = row
    for key in field.split("."):
        if not isinstance(inner, dict) or key not in inner:
            keys = ", ".join(f'"{key}"' for key in list(row)[:12]) or "none"
            raise RowError(f'no "{field}"; its keys are {keys}: name the right one with {option}')
        inner = inner[key]
    return inner


def question(value: Any) -> tuple[Message, ...]:
    """The conversation that a prompt is; its last message is the user's."""
    if is_text(value):
        messages: tuple[Message, ...] = (("user", value),)
    elif isinstance(value, list) and value:
        messages = conversation(value, "the prompt")
    else:
        expected = 'text, or a list of {"role": …, "content": …} messages'
        raise RowError(f"the prompt is {shown(value)}: expected {expected}")
    if messages[-1][0] != "user":
        raise RowError(f"the last message is the {messages[-1][0]}'s: expected one of the user")
    if not messages[-1][1].strip():
        raise RowError("the question is empty")
    check_unicode(content for _, content in messages)
    return messages


def conversation(values: Iterable[Any], of: str) -> tuple[Message, ...]:
    """Chat messages; the content of one may be a list of parts that are text."""
    return tuple(_message(value, of) for value in values)


def _message(value: Any, of: str) -> Message:
    role = value.get("role") if isinstance(value, dict) else None
    content = value.get("content") if isinstance(value, dict) else None
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and is_text(part.get("text"))
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not is_text(role) or not is_text(content):
        expected = 'expected {"role": "user", "content": "text"}'
        raise RowError(f"a message of {of} is {shown(value)}: {expected}")
    return role, content


def is_text(value: Any) -> TypeGuard[str]:
    """Whether the row has it as a string."""
    return isinstance(value, str) and not isinstance(value, Number)


def response_text(value: Any) -> str:
    """A response of the assistant: text, or a list of one message."""
    if isinstance(value, list) and len(value) == 1:
        ((role, text),) = conversation(value, "the completion")
        if role == "assistant":
            return text
    if not is_text(value):
        expected = "expected text, or a list of one message of the assistant"
        raise RowError(f"the completion is {shown(value)}: {expected}")
    return value


def before_end(said: str, end: str) -> str:
    """What is said before the end of the sequence. A file that was made with a chat template may
    have that and a newline: nothing is learnt behind the end."""
    before, _, behind = said.partition(end)
    if behind.replace(end, "").strip():
        raise RowError(f"the assistant goes on after {end}, which ends what it says")
    return before


def check_unicode(texts: Iterable[str]) -> None:
    """Raises RowError where a text cannot be written as UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise RowError(f"{half} is half of a surrogate pair: the text is no Unicode") from None


def plain(value: Any) -> Any:
    """The value with Python's own numbers."""
    if isinstance(value, Number):
        return value.value
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return value


def shown(value: Any) -> str:
    """The value as a JSON file has it, shortened: what a message shows of it."""
    if isinstance(value, Number):
        text = str(value)
    elif isinstance(value, list):
        text = f"[{', '.join(map(shown, value[:9]))}]"
    else:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else text[:77] + "…"
