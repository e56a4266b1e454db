"""A model that says what a test has written, question by question."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from r1train.config.recipe import default_config
from r1train.suite.asking import Asking
from r1train.suite.sampling import Subject


class Tokenizer:
    """Prompts are one token of their number; what was said is decoded by its place."""

    pad_token_id = eos_token_id = bos_token_id = None
    all_special_ids = ()

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def convert_tokens_to_ids(self, token: str) -> None:
        return None

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, Any]:
        return {"input_ids": [[1, 2, 3] for _ in texts]}

    def batch_decode(self, ids: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [self.said[row[0]] for row in ids]


@dataclass
class Engine:
    """Completions come in the order of the script; every request is kept."""

    said: list[str]
    requests: list[Any] = field(default_factory=list)
    breaks_after: int | None = None

    def generate(self, requests: Any, sampling: Any) -> Any:
        if self.breaks_after is not None and len(self.requests) >= self.breaks_after:
            raise KeyboardInterrupt
        first = sum(request.n for request in self.requests)
        self.requests += requests
        ids = [[first + i] * 5 for i in range(sum(request.n for request in requests))]
        return SimpleNamespace(
            completion_ids=ids, lengths=[5] * len(ids), finished=[True] * len(ids)
        )


class Model:
    """Of any length, and with an embedding for few tokens."""

    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())

    def get_input_embeddings(self) -> Any:
        import torch

        return SimpleNamespace(weight=torch.zeros(8, 1))


def asking(said: list[str], data: Path, place: Path, *overrides: str) -> Asking:
    """What asks the benchmarks of such a model."""
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text("{}")  # of a HuggingFace folder
    config = default_config([f"model.path={place}", "model.preset=none", *overrides])
    found = Asking(config, data, place / "suite", trained=False)
    model: Any = Model()
    tokenizer: Any = Tokenizer(said)
    engine: Any = Engine(said)
    found.subject = Subject(model, tokenizer, engine, config, "plain", None)
    return found
