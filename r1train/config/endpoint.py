"""Where a model is asked that runs elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass

from r1train.config.schema import Count, CountOrZero, NonNegative, Seconds, Section, Workers


@dataclass(frozen=True)
class EndpointConfig(Section, section="endpoint"):
    """An OpenAI-compatible HTTP endpoint: of vLLM, SGLang, a vendor."""

    url: str | None = None
    """Its base, such as "http://localhost:8000/v1"; requests go to /chat/completions below it."""
    model: str | None = None
    """Name by which the endpoint knows the model."""
    api_key_env: str | None = None
    """Environment variable that holds the key (unset: the endpoint needs none)."""
    temperature: NonNegative = 0.0
    """Sampling temperature of its answers."""
    max_tokens: Count = 2048
    """Tokens of an answer, its thoughts among them."""
    timeout: Seconds = 120.0
    """Seconds that one request may take."""
    retries: CountOrZero = 4
    """How often a request is repeated, at growing intervals, where the endpoint cannot be reached,
    takes too long, has too much to do (429) or fails (5xx)."""
    concurrency: Workers = 16
    """Requests under way at once."""

    def check(self) -> None:
        known = self.url is None or re.fullmatch(r"https?://[^\s/]+(/\S*)?", self.url)
        self.require(bool(known), "url", "expected http:// or https://, a host, and its path")

    def require_endpoint(self) -> None:
        """ConfigError unless it is said which model is asked, and where."""
        self.require(self.url is not None, "url", 'give it, as "http://localhost:8000/v1"')
        self.require(self.model is not None, "model", "give the name of a model of the endpoint")
