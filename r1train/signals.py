"""SIGTERM and SIGHUP as exceptions: what ends a job ends a run as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STOPPING = (signal.SIGTERM, signal.SIGHUP)


class Stopped(SystemExit):
    """A signal asked the process to end; uncaught, it ends with status 128 + number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number, self.name = number, signal.Signals(number).name

    def __str__(self) -> str:
        return self.name


@contextmanager
def stopping_signals() -> Iterator[None]:
    """Within it SIGTERM (SLURM, docker stop) and SIGHUP raise `Stopped`, once: a second one does
    not disturb the last checkpoint. A signal that is already handled or ignored stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python has handlers in the main thread only
        return
    ours = [number for number in STOPPING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)
