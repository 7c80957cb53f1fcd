"""One process a side and folder: two that wrote into one would damage each other's checkpoints and logs."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from bitseam.errors import ClaimedError, ConfigError

log = logging.getLogger(__name__)

_LOCK = ".lock"
_TRIES, _PAUSE = 10, 0.02  # seconds
_held: set[int] = set()  # descriptors; a forked child has copies, which would keep the lock when we are gone


@contextmanager
def claimed(out: Path, side: Literal["client", "server"], needed: bool = True) -> Iterator[None]:
    """OUT/SIDE is there, can be written, and is ours while the context lasts.

    The lock goes with the process, however it ends. Raises ClaimedError where another process has the folder, and
    ConfigError where it cannot be written; with `needed` false, as of who only answers, the latter is a warning.
    """
    folder = out / side
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        fault = f"{folder}: cannot be written: {error.strerror}; name another folder in `out`, or make room there"
        if needed:
            raise ConfigError(fault) from error
        log.warning("%s. Nothing is logged there", fault)
        yield
        return
    _held.add(handle)
    try:
        _lock(handle, folder)
        yield
    finally:
        if handle in _held:
            _held.remove(handle)
            os.close(handle)


def require_unclaimed(folder: Path) -> None:
    """Raise ClaimedError where another process has OUT/SIDE; leaves nothing there, and takes nothing for itself."""
    with suppress(OSError):
        handle = os.open(folder / _LOCK, os.O_RDONLY)
        try:
            _lock(handle, folder, fcntl.LOCK_SH)
        finally:
            os.close(handle)


def _let_go() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def _lock(handle: int, folder: Path, kind: int = fcntl.LOCK_EX) -> None:
    try:
        _flock(handle, kind)
    except BlockingIOError as error:
        holder = os.pread(handle, 20, 0).decode(errors="replace").strip()
        if holder == _us():
            raise ClaimedError(f"{folder}: this process has a server or client in this folder already") from error
        raise ClaimedError(
            f"{folder}: another process{f' ({holder})' if holder else ''} runs in this folder; wait for its end, or "
            "name another folder in `out`"
        ) from error
    except OSError as error:  # some network file systems have no locks
        log.warning("%s: cannot be locked (%s): see to it that no second process runs in it", folder, error.strerror)
        return
    if kind == fcntl.LOCK_EX:
        with suppress(OSError):  # it is there for people alone
            os.ftruncate(handle, 0)
            os.pwrite(handle, _us().encode(), 0)


def _us() -> str:
    return f"pid {os.getpid()}"


def _flock(handle: int, kind: int) -> None:
    """Raises BlockingIOError where the lock stays another's: `bitseam check` has it for a moment alone."""
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            return fcntl.flock(handle, kind | fcntl.LOCK_NB)
        time.sleep(_PAUSE)
    return fcntl.flock(handle, kind | fcntl.LOCK_NB)
