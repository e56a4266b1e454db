"""Programs in what a model said."""

from __future__ import annotations

from r1train.sandbox.limits import Language

NAMES: dict[Language, tuple[str, ...]] = {
    "python": ("python", "py", "python3"),
    "cpp": ("cpp", "c++", "cc", "cxx"),
}
"""What a fence calls each language."""


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """The name and the content of each ``` block that is closed, in their order."""
    blocks: list[tuple[str, str]] = []
    name: str | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        mark = line.strip()
        if name is None:
            if mark.startswith("```") and "`" not in mark[3:]:
                name, lines = mark[3:].strip().lower(), []
        elif mark == "```":
            blocks.append((name, "".join(lines)))
            name = None
        else:
            lines.append(line + "\n")
    return blocks


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
        found = [block for name, block in blocks if name in names]
        if found:
            return found[-1]
    return None
