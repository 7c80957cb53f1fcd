"""Signals that end a side after the step under way, with both halves written."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

TERMINATED = (signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal went away


class Told:
    """Whether a signal has come, and which; `wait` for one, some seconds at most."""

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self._came = threading.Event()

    def __call__(self) -> bool:
        return self._came.is_set()

    def wait(self, seconds: float) -> bool:
        """Whether one has come by then."""
        return self._came.wait(seconds)

    def take(self, number: int, frame: FrameType | None) -> None:
        """A signal's handler."""
        self.by = signal.Signals(number)
        self._came.set()


@contextmanager
def told_by(signals: Sequence[signal.Signals], grace: float | None = None) -> Iterator[Told]:
    """Signals are noted, rather than end the process, while the context lasts.

    grace: seconds after which a signal ends the process all the same, as a second one does. One that is ignored stays
    so: who was started under `nohup` is to outlive its terminal. In a thread other than the main one nothing is noted.
    """
    told, before = Told(), {}

    def take(number: int, frame: FrameType | None) -> None:
        if grace is not None:
            if told():
                _die(number)
            timer = threading.Timer(grace, _die, (number,))
            timer.daemon = True
            timer.start()
        told.take(number, frame)

    if threading.current_thread() is threading.main_thread():
        for number in signals:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, take)
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _die(number: int) -> None:
    with suppress(OSError):  # not by way of a log: a handler may have come in the middle of it
        os.write(2, f"ended by {signal.Signals(number).name} before the step was over\n".encode())
    os._exit(128 + number)
