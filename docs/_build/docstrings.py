"""Docstrings as Markdown: they are written to be read in an editor and by ``help`` first."""

from __future__ import annotations

import re
from typing import Any

import griffe

CODE = re.compile(r"(``.+?``|`.+?`)", re.DOTALL)
RULE = re.compile(r"=+( +=+)+")


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    return "\n".join(fence(join_names(escape_tags(text).splitlines())))


def escape_tags(text: str) -> str:
    """``<think>`` in a sentence is text, not HTML."""
    parts = CODE.split(text)
    parts[::2] = [re.sub(r"<(?=[/a-z])", "&lt;", part) for part in parts[::2]]
    return "".join(parts)


def join_names(lines: list[str]) -> list[str]:
    """One line for the names of arguments that are described together, however many they are."""
    joined: list[str] = []
    wrapped = False
    for line in lines:
        if wrapped:
            joined[-1] += f" {line.strip()}"
        else:
            joined.append(line)
        wrapped = re.fullmatch(r" {4}( *\w+,)+", joined[-1]) is not None
    return joined


def fence(lines: list[str]) -> list[str]:
    """Tables drawn with ``===`` and examples after ``>>>`` keep their lines."""
    fenced: list[str] = []
    rules = [i for i, line in enumerate(lines) if RULE.fullmatch(line.strip())]
    first, last = (rules[0], rules[-1]) if rules else (-1, -1)
    for i, line in enumerate(lines):
        example = line.lstrip().startswith(">>>")
        opens = i == first or (example and not lines[i - 1].lstrip().startswith((">>>", "...")))
        following = lines[i + 1].lstrip() if i + 1 < len(lines) else ""
        closes = i == last or (
            line.lstrip().startswith((">>>", "...")) and not following.startswith((">>>", "..."))
        )
        fenced += ["```python" if example else "```"] if opens else []
        fenced.append(line)
        fenced += ["```"] if closes else []
    return fenced
