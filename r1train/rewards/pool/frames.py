"""What a verifier process may say: frames of 256 bytes, checked by whoever reads them.

Nothing that comes from a process in which an answer was judged is unpickled or evaluated: a frame
is a kind, the number of a job, a score and a line of text, and anything else is a `BadFrame`.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Literal, NamedTuple

_LAYOUT = struct.Struct("!BId243s")
FRAME_BYTES = _LAYOUT.size
assert FRAME_BYTES == 256  # below PIPE_BUF, so that a frame is written whole or not at all


class Outcome(NamedTuple):
    """What became of one answer; a failure scores 0 and says why."""

    score: float
    failure: Literal["error", "timeout"] | None = None
    message: str = ""


class Kind(IntEnum):
    """What a frame says; only SCORE has a score, only ERROR, TIMEOUT and BROKEN a message."""

    READY = 1
    """The worker has imported what it needs."""
    BROKEN = 2
    """The worker cannot start."""
    WATCHED = 3
    """The answer did what the audit hook watches: its process judges no other."""
    SCORE = 4
    ERROR = 5
    TIMEOUT = 6


class BadFrame(ValueError):
    """Bytes that no honest process writes."""


class Frame(NamedTuple):
    kind: Kind
    job: int = 0
    """Position of the job in its batch."""
    score: float = 0.0
    message: str = ""

    def encode(self) -> bytes:
        text = self.message.encode("utf-8", "replace")[: _LAYOUT.size - 13]
        return _LAYOUT.pack(self.kind, self.job, self.score, text)

    @property
    def outcome(self) -> Outcome:
        if self.kind is Kind.SCORE:
            return Outcome(self.score)
        return Outcome(0.0, "timeout" if self.kind is Kind.TIMEOUT else "error", self.message)


def decode(data: bytes) -> Frame:
    """The frame in these 256 bytes; BadFrame where a field is not what it may be."""
    kind, job, score, text = _LAYOUT.unpack(data)
    try:
        kind = Kind(kind)
    except ValueError:
        raise BadFrame(f"unknown kind {kind}") from None
    if not math.isfinite(score) or not 0.0 <= score <= 1.0 or (score and kind is not Kind.SCORE):
        raise BadFrame(f"score {score}")
    if text.strip(b"\0") and kind not in (Kind.ERROR, Kind.TIMEOUT, Kind.BROKEN):
        raise BadFrame("a message where none belongs")
    line = text.rstrip(b"\0").decode("utf-8", "replace")  # may end within a character
    return Frame(kind, job, score, "".join(c if c.isprintable() else " " for c in line))


class FrameReader:
    """Cuts what arrives at a file descriptor into frames."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.rest = b""

    def frames(self) -> Iterator[Frame]:
        """Read once (call it when there is something to read). EOFError at the end."""
        try:
            data = os.read(self.descriptor, 64 * FRAME_BYTES)
        except ConnectionResetError:  # its process ended before it had read all that it was sent
            data = b""
        if not data:
            raise EOFError
        self.rest += data
        while len(self.rest) >= FRAME_BYTES:
            first, self.rest = self.rest[:FRAME_BYTES], self.rest[FRAME_BYTES:]
            yield decode(first)
