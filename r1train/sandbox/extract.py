"""Programs in what a model said."""

from __future__ import annotations

import re

from r1train.sandbox.limits import Language

NAMES: dict[Language, tuple[str, ...]] = {
    "python": ("python", "py"),
    "cpp": ("cpp", "c++", "cc", "cxx"),
}
"""What a fence calls each language, but for its version."""

# Tildes with nothing behind them underline a heading.
_FENCE = re.compile(r"(?P<marks>`{3,}(?=[^`]*$)|~{3,}(?=\s*[^\s~][^~]*$))\s*(?P<name>[^\s{]*)")


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """The name and the content of each block that is closed, in their order: between ```, or ~~~
    and a name, and as many marks again, or more. All lines lose the spaces that they have in
    common, at most those before the first mark: in a list."""
    blocks: list[tuple[str, str]] = []
    marks, name, indent = "", "", 0
    lines: list[str] = []
    for line in text.split("\n"):
        stripped = line.strip()
        if not marks:
            if fence := _FENCE.match(stripped):
                marks, name, lines = fence["marks"], fence["name"].lower(), []
                indent = _indent(line)
        elif stripped.startswith(marks) and not stripped.strip(marks[0]):
            common = min([indent, *(_indent(line) for line in lines if line.strip())])
            blocks.append((name, "".join(line[common:] + "\n" for line in lines)))
            marks = ""
        else:
            lines.append(line)
    return blocks


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def extract_program(completion: str, language: Language) -> str | None:
    """The last block of the language, or, where none names it, the last without a name, in what
    follows the chain of thought; None where there is none.

    The chain of thought ends at the last </think>. A completion that opens one and does not close
    it has said nothing yet.
    """
    _, closed, answer = completion.rpartition("</think>")
    if not closed and "<think>" in completion:
        return None
    blocks = fenced_blocks(answer)
    for names in (NAMES[language], ("",)):
        found = [block for name, block in blocks if name.rstrip("0123456789.") in names]
        if found:
            return found[-1]
    return None
