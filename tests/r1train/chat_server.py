"""An OpenAI-compatible endpoint on the loopback device, which answers as a test tells it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], Any]


def saying(text: Any) -> bytes:
    """The body of a reply in which the model says `text`."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class ChatServer(ThreadingHTTPServer):
    """`answer` gets a request's body and returns the text of the model, or (status, headers, body).
    What it was sent is kept."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.headers.append(self.headers)
        self.server.paths.append(self.path)
        said = self.server.answer(request)
        status, headers, body = (200, {}, saying(said)) if isinstance(said, str) else said
        if body is None:
            return  # the connection ends without a word
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for part in [body] if isinstance(body, bytes) else body:
            try:
                self.wfile.write(part)
            except OSError:  # nobody listens any more
                return

    def log_message(self, *_: Any) -> None:
        """Tests are silent."""


@contextmanager
def serving(answer: Answer):
    with ChatServer(answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
