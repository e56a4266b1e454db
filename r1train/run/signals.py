"""SIGTERM and SIGHUP as exceptions, which wait while a run is being saved, as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOPPING: dict[signal.Signals, Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}
"""What ends a run, and the handler of each where nobody has set another."""


class Stopped(SystemExit):
    """A signal asked the process to end; uncaught, it ends with status 128 + number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number, self.name = number, signal.Signals(number).name

    def __str__(self) -> str:
        return self.name


class Signals:
    """The handler of stopping signals: each raises where it is met, or waits while held."""

    def __init__(self) -> None:
        self.acting, self.said = True, False
        self.waiting: Stopped | KeyboardInterrupt | None = None
        """What is raised once signals act again: the first that came while they were held."""
        self._interrupts = 0

    def __call__(self, number: int, _: FrameType | None = None) -> None:
        interrupt = number == signal.SIGINT
        stop = KeyboardInterrupt() if interrupt else Stopped(number)
        if self.acting:
            raise stop
        self._interrupts += interrupt
        if interrupt and self._interrupts > 1:
            raise stop  # at a terminal somebody knows what is lost
        self.waiting = self.waiting or stop
        if not self.said:
            self.said = True
            text = f"{signal.Signals(number).name}: the run is saved first, then stopped"
            say(f"{text} (a second Ctrl-C breaks off)")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it a stopping signal waits; it is raised at the end, after an error as its cause.

        Only a second Ctrl-C breaks off what is within.
        """
        before, self.acting = self.acting, False
        try:
            yield
        except BaseException as error:
            self.acting = before
            self._act(error)
            raise
        self.acting = before
        self._act(None)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Within it they act again, the one that has waited at once."""
        before, self.acting = self.acting, True
        try:
            self._act(None)
            yield
        finally:
            self.acting = before

    def _act(self, error: BaseException | None) -> None:
        """Raises what has waited, unless signals are still held or `error` is one already."""
        if not self.acting or self.waiting is None:
            return
        stop, self.waiting, self._interrupts = self.waiting, None, 0
        if not isinstance(error, Stopped | type(stop)):
            raise stop from error


def say(text: str) -> None:
    """On the terminal, from within a handler too, where `print` may be what was interrupted."""
    with suppress(OSError):  # a terminal that has gone
        os.write(2, f"\nr1train: {text}\n".encode())


@contextmanager
def stopping_signals() -> Iterator[Signals]:
    """Within it SIGTERM (SLURM, docker stop) and SIGHUP raise `Stopped`, as Ctrl-C raises
    KeyboardInterrupt, and all three can be held. A signal that is already handled or ignored stays
    so, and in other threads than the main one, where Python has no handlers, all are.
    """
    signals = Signals()
    main = threading.current_thread() is threading.main_thread()
    ours = [number for number, usual in STOPPING.items() if signal.getsignal(number) is usual]
    for number in ours if main else ():
        signal.signal(number, signals)
    try:
        yield signals
    finally:
        for number in ours if main else ():
            signal.signal(number, STOPPING[number])
