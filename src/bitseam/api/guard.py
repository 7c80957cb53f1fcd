"""Calls that come too late, too early or from two threads are refused by name, rather than damage what is under way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bitseam.errors import BusyError, ClosedError


class Guard:
    """Lets in one thread at a time, which may call again from inside, and nobody once it is closed.

    what: is guarded, as in "this client". A copy, of a module with a guard say, has a guard of its own.
    """

    def __init__(self, what: str) -> None:
        self._what, self._lock = what, threading.RLock()
        self._doing, self._closed = "", False

    def __reduce__(self) -> tuple[type[Guard], tuple[str]]:
        return Guard, (self._what,)

    @contextmanager
    def __call__(self, call: str) -> Iterator[str]:
        """While a call lasts; gives the one that it comes from inside of, "" for none.

        Raises ClosedError, and BusyError where another thread is in a call.
        """
        if not self._lock.acquire(blocking=False):
            raise BusyError(
                f"{call}: {self._what} is in {self._doing or 'another call'}, of another thread; make one call after "
                "the other"
            )
        before, self._doing = self._doing, call
        try:
            if self._closed:
                raise ClosedError(f"{call}: {self._what} is closed")
            yield before
        finally:
            self._doing = before
            self._lock.release()

    def close(self) -> bool:
        """Let nobody in any more; returns whether it was open. Raises BusyError from inside a call."""
        if self._closed:
            return False
        with self("close()") as outer:
            if outer:
                raise BusyError(f"close(): {self._what} is in {outer}; end that first")
            self._closed = True
        return True
