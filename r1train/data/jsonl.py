"""Questions and answers from a JSONL file: one JSON object a line, in UTF-8.

Only a line feed ends a line (a carriage return before it is dropped): U+2028 and its like are
characters of a string. Numbers keep the digits that the file gives them, so 1e-7 stays 1e-7. A line
that cannot be a problem is an error with its number, and all such lines are looked for at once.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1train.config.schema import ConfigError
from r1train.data.golds import final_answer, listed_answer
from r1train.verify import ANSWER_TYPES, AnswerType

MAX_LINE_BYTES = 16 << 20
PROMPT_FIELDS, ANSWER_FIELD = ("prompt", "question"), "answer"
Message = tuple[str, str]
"""Role and content."""


@dataclass(frozen=True)
class Entry:
    """One line of a file."""

    line: int
    """Its number, from 1."""
    messages: tuple[Message, ...]
    """The conversation, whose last message is the user's; a prompt that is text is one message."""
    answer: str
    answer_type: AnswerType

    @property
    def question(self) -> str:
        """The last message, which is the user's."""
        return self.messages[-1][1]


class _Fault(ValueError):
    """What is wrong with a line."""


class _Number(str):
    """A number as the file writes it."""


def read_jsonl(
    path: Path,
    *,
    prompt_field: str | None = None,
    answer_field: str | None = None,
    answer_type: AnswerType = "auto",
) -> list[Entry]:
    """Every line of the file that is not blank.

    `prompt_field` and `answer_field` are keys, or paths of keys with dots between them; unset they
    are "prompt" or "question", and "answer". `answer_type` is for lines that give none. Raises
    ConfigError naming the file, the line and what to do.
    """
    entries: list[Entry] = []
    faults: dict[str, list[int]] = defaultdict(list)
    for number, line in _lines(path):
        try:
            entries.append(_entry(line, number, prompt_field, answer_field, answer_type))
        except _Fault as fault:
            faults[str(fault)].append(number)
    if faults:
        reason, numbers = next(iter(faults.items()))
        also = sorted(number for found in faults.values() for number in found)
        also.remove(numbers[0])
        raise ConfigError(f"{path}, line {numbers[0]}: {reason}{_and_lines(also)}")
    if not entries:
        raise ConfigError(f"{path}: the file has no problems: every line is blank")
    return entries


def some_lines(numbers: Sequence[int], most: int = 8) -> str:
    """`lines 1, 2, 3, …` with no more than `most` numbers."""
    text = ", ".join(map(str, numbers[:most])) + (", …" if len(numbers) > most else "")
    return f"line{'s' * (len(numbers) > 1)} {text}"


def _and_lines(numbers: Sequence[int]) -> str:
    return f" ({some_lines(numbers)} cannot be used either)" if numbers else ""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank."""
    try:
        with open(path, "rb") as file:
            offset, number = 0, 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if number == 1:
                    _check_start(path, raw)
                if len(raw) > MAX_LINE_BYTES:
                    limit = f"longer than {MAX_LINE_BYTES >> 20} MiB"
                    raise ConfigError(
                        f"{path}, line {number}: {limit}; is each problem on its line?"
                    )
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ConfigError(
                        f"{path}, line {number}: byte {offset + error.start} of the file "
                        f"(0x{raw[error.start]:02x}) is not UTF-8; convert the file, for example "
                        f"with: iconv -f LATIN1 -t UTF-8 {path.name} > utf8.jsonl"
                    ) from None
                offset += len(raw)
                if text.strip():
                    yield number, text
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _check_start(path: Path, raw: bytes) -> None:
    """Refuses the files of another kind that are met most often."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw[:4]:
        remedy = f"convert it, for example with: iconv -f UTF-16 -t UTF-8 {path.name} > utf8.jsonl"
        raise ConfigError(f"{path}: byte 0 of the file is not UTF-8 but UTF-16: {remedy}")
    if raw.startswith(b"\x1f\x8b"):
        raise ConfigError(f"{path}: the file is compressed: unpack it first, with gunzip")
    if raw.startswith(b"PAR1"):
        raise ConfigError(f"{path}: this is a Parquet file: write it as JSONL, one object a line")


def _entry(
    line: str,
    number: int,
    prompt_field: str | None,
    answer_field: str | None,
    answer_type: AnswerType,
) -> Entry:
    try:
        value = json.loads(
            line, parse_float=_Number, parse_int=_Number, parse_constant=_no_constant
        )
    except json.JSONDecodeError as error:
        array = line.lstrip().startswith("[")
        if array or line.strip() == "{":
            raise _Fault(
                "expected one JSON object a line, not one document over several; rewrite the file, "
                f"for example with: jq -c '{'.[]' if array else '.'}'"
            ) from None
        raise _Fault(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise _Fault("not a problem: its JSON is nested too deeply") from None
    if not isinstance(value, dict):
        raise _Fault('expected an object such as {"prompt": "What is 1 + 1?", "answer": "2"}')
    messages = _messages(_prompt(value, prompt_field))
    kind = value.get("answer_type", answer_type)
    if kind not in ANSWER_TYPES:
        raise _Fault(f'"answer_type" is {_shown(kind)}: expected one of {", ".join(ANSWER_TYPES)}')
    answer = _field(value, answer_field or ANSWER_FIELD, "answer_field")
    return Entry(number, messages, _answer(answer, kind), kind)


def _no_constant(name: str) -> None:
    raise _Fault(f"{name} is no JSON number, and no answer that can be met")


def _prompt(value: Mapping[str, Any], field: str | None) -> Any:
    if field is not None:
        return _field(value, field, "prompt_field")
    found = [name for name in PROMPT_FIELDS if name in value]
    if len(found) > 1:
        raise _Fault('"prompt" and "question" are both there: say which with prompt_field')
    return _field(value, found[0] if found else PROMPT_FIELDS[0], "prompt_field")


def _field(value: Mapping[str, Any], field: str, option: str) -> Any:
    """The value of a key, or of a path of keys with dots between them."""
    if field in value:
        return value[field]
    inner: Any = value
    for key in field.split("."):
        if not isinstance(inner, dict) or key not in inner:
            keys = ", ".join(f'"{key}"' for key in list(value)[:12]) or "none"
            raise _Fault(f'no "{field}"; its keys are {keys}: name the right one with {option}')
        inner = inner[key]
    return inner


def _messages(prompt: Any) -> tuple[Message, ...]:
    if isinstance(prompt, str) and not isinstance(prompt, _Number):
        messages: tuple[Message, ...] = (("user", prompt),)
    elif isinstance(prompt, list) and prompt:
        messages = tuple(map(_message, prompt))
    else:
        expected = 'text, or a list of {"role": …, "content": …} messages'
        raise _Fault(f"the prompt is {_shown(prompt)}: expected {expected}")
    if messages[-1][0] != "user":
        raise _Fault(f"the last message is the {messages[-1][0]}'s: expected one of the user")
    if not messages[-1][1].strip():
        raise _Fault("the question is empty")
    for _, content in messages:
        _check_unicode(content)
    return messages


def _message(value: Any) -> Message:
    role = value.get("role") if isinstance(value, dict) else None
    content = value.get("content") if isinstance(value, dict) else None
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        expected = 'expected {"role": "user", "content": "text"}'
        raise _Fault(f"a message of the prompt is {_shown(value)}: {expected}")
    return role, content


def _answer(value: Any, kind: str) -> str:
    if value is None:
        raise _Fault("the answer is null: give the problem an answer, or leave the line out")
    if isinstance(value, dict):
        raise _Fault(f"the answer is {_shown(value)}: expected text, a number or a list")
    if isinstance(value, list) and kind not in ("set", "ordered"):
        raise _Fault(
            f'the answer is the list {_shown(value)}: add "answer_type": "set" (any order) or '
            '"ordered" to the line, or answer_type to the dataset; one answer is no list'
        )
    _check_unicode(json.dumps(value, ensure_ascii=False))
    try:
        if isinstance(value, list):
            text = listed_answer(value, kind)
        elif isinstance(value, bool):
            text = json.dumps(value)
        else:
            text = final_answer(value, kind)
    except ValueError as error:
        raise _Fault(str(error)) from None
    return text


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise _Fault(f"{half} is half of a surrogate pair: the text is no Unicode") from None


def _shown(value: Any) -> str:
    """The value as the file writes it, shortened."""
    if isinstance(value, _Number):
        text = str(value)
    elif isinstance(value, list):
        text = f"[{', '.join(map(_shown, value[:9]))}]"
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "…"
