"""A client of OpenAI-compatible chat endpoints: many requests at once, each in bounded time."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.message import Message as Headers
from typing import Any, Literal, NamedTuple
from urllib.error import HTTPError, URLError

from r1train.config.endpoint import EndpointConfig
from r1train.config.schema import shown
from r1train.data.fields import Message

LARGEST_REPLY = 8 * 2**20
"""Bytes that are read of a reply."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the first repetition, which double with each, and at most."""


class Failure(NamedTuple):
    """Why there is no answer."""

    kind: Literal["error", "timeout"]
    message: str


class _Unanswered(Exception):
    """One request without an answer; `pause` is what the endpoint asks to wait, in seconds."""

    def __init__(self, failure: Failure, again: bool, pause: float = 0.0) -> None:
        self.failure, self.again, self.pause = failure, again, pause


class ChatClient:
    """Asks the endpoint of `config`. ConfigError where that names none, or a key is not there."""

    def __init__(self, config: EndpointConfig) -> None:
        config.require_endpoint()
        assert config.url is not None
        self.config = config
        self.url = config.url.rstrip("/") + "/chat/completions"
        self.headers = {"Content-Type": "application/json"}
        if config.api_key_env is not None:
            key = os.environ.get(config.api_key_env, "").strip()
            known = f"no such environment variable; export {config.api_key_env} with the key"
            config.require(key != "", "api_key_env", known)
            self.headers["Authorization"] = f"Bearer {key}"
        self.opener = urllib.request.build_opener(_NoRedirect)
        self.threads = ThreadPoolExecutor(config.concurrency, thread_name_prefix="judge")

    def ask(self, conversations: Sequence[Sequence[Message]]) -> list[str | Failure]:
        """What the model answers to each conversation, in order; equal ones are asked once."""
        distinct = {tuple(messages): self._body(messages) for messages in conversations}
        answers = dict(zip(distinct, self.threads.map(self._ask, distinct.values()), strict=True))
        return [answers[tuple(messages)] for messages in conversations]

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)

    def _body(self, messages: Sequence[Message]) -> bytes:
        return json.dumps(
            {
                "model": self.config.model,
                "messages": [{"role": role, "content": content} for role, content in messages],
                "temperature": self.config.temperature,
                "max_tokens": self.config.max_tokens,
            }
        ).encode()

    def _ask(self, body: bytes) -> str | Failure:
        pause = FIRST_PAUSE
        for left in reversed(range(self.config.retries + 1)):
            try:
                return _text(self._reply(body))
            except _Unanswered as error:
                if not (error.again and left):
                    return error.failure
                time.sleep(min(LONGEST_PAUSE, max(pause, error.pause)))
                pause *= 2
        raise AssertionError  # the last round returns

    def _reply(self, body: bytes) -> bytes:
        """The body of the reply to one request. Its time is bounded as a whole: an endpoint that
        sends a byte now and then would never run into the socket's."""
        deadline = time.monotonic() + self.config.timeout
        request = urllib.request.Request(self.url, body, self.headers)
        try:
            with self.opener.open(request, timeout=self.config.timeout) as reply:
                return _read(reply, deadline)
        except HTTPError as error:
            said = b""
            with error, suppress(OSError, http.client.HTTPException):
                said = error.read(500)
            again = error.code == 429 or error.code >= 500
            message = f"{self.url}: HTTP {error.code}: {shown(said.decode('utf-8', 'replace'))}"
            raise _Unanswered(Failure("error", message), again, _pause(error.headers)) from None
        except (TimeoutError, URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            late = isinstance(reason, TimeoutError)
            why = f"no answer within {self.config.timeout:g} s" if late else f"{reason!r}"
            failure = Failure("timeout" if late else "error", f"{self.url}: {why}")
            raise _Unanswered(failure, again=True) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is an error: the key is for the host that the user has named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _read(reply: http.client.HTTPResponse, deadline: float) -> bytes:
    found = b""
    while chunk := reply.read1(65536):
        found += chunk
        if len(found) > LARGEST_REPLY:
            failure = Failure("error", f"its reply has more than {LARGEST_REPLY} bytes")
            raise _Unanswered(failure, again=False)
        if time.monotonic() > deadline:
            raise TimeoutError
    return found


def _text(reply: bytes) -> str:
    """What the model says in a reply of the endpoint."""
    try:
        text = json.loads(reply)["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, LookupError, TypeError, RecursionError):
        message = f"expected choices[0].message.content, got {shown(reply[:500])}"
        raise _Unanswered(Failure("error", message), again=True) from None
    return text


def _pause(headers: Headers) -> float:
    try:
        return max(0.0, float(headers.get("Retry-After", "0")))
    except ValueError:  # a date
        return 0.0
