"""Signals that end a side after the step under way, with both halves written."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

TERMINATED = (signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal went away


class Told:
    """Whether a signal has come, and which; `wait` for one, some seconds at most.

    A handler may come while its thread holds any lock, an event's too, and would wait for itself: it writes to a pipe.
    """

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self._reader, self._writer = os.pipe()

    def __call__(self) -> bool:
        return self.by is not None

    def wait(self, seconds: float | None) -> bool:
        """Whether one has come by then."""
        select.select([self._reader], [], [], seconds)
        return self()

    def take(self, number: int) -> None:
        """Of a signal's handler."""
        self.by = signal.Signals(number)
        self.wake()

    def wake(self) -> None:
        """End every `wait`."""
        os.write(self._writer, b"!")

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


@contextmanager
def told_by(signals: Sequence[signal.Signals], grace: float | None = None) -> Iterator[Told]:
    """Signals are noted, rather than end the process, while the context lasts.

    grace: seconds after which a signal ends the process all the same, as a second one does. One that is ignored stays
    so: who was started under `nohup` is to outlive its terminal. In a thread other than the main one nothing is noted.
    """
    told, over, before = Told(), threading.Event(), {}

    def take(number: int, frame: FrameType | None) -> None:
        if grace is not None and told():
            _die(number)
        told.take(number)

    def watch() -> None:
        told.wait(None)
        if not over.wait(grace) and told.by is not None:
            _die(told.by)

    watching = threading.Thread(target=watch, name="grace", daemon=True)
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, take)
    if grace is not None:
        watching.start()
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if grace is not None:
            over.set()
            told.wake()
            watching.join()
        told.close()


def _die(number: int) -> None:
    with suppress(OSError):  # not by way of a log: a handler may have come in the middle of it
        os.write(2, f"ended by {signal.Signals(number).name} before the step was over\n".encode())
    os._exit(128 + number)
