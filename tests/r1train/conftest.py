from __future__ import annotations

import pytest

from r1train.config import Config, ModelConfig
from r1train.model import load_model

TEXTS = [f"User: What is {a} + {b}?\nAssistant:" for a in range(10) for b in range(10)]


@pytest.fixture
def mini():
    """The deepseek-v3-mini model and its tokenizer, made from seed 0."""
    return load_model(Config(model=ModelConfig(preset="deepseek-v3-mini")), TEXTS)


@pytest.fixture
def prompts(mini):
    """Three prompts of different lengths, the first one twice."""
    texts = ["User: What is 1 + 2?\nAssistant:", "7", "What is 3?"]
    first, second, third = mini[1](texts)["input_ids"]
    assert len({len(first), len(second), len(third)}) == 3
    return [first, first, second, third]
