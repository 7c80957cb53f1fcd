"""What a run writes and can do without: logs, curves, notes, summaries.

A write that fails ends nothing. The first of a series is a warning, the file is tried again with each later write, and
the first that succeeds is told too. Files are opened anew for each write, so that a folder that was removed, or a disk
that was full, is no reason to stop for good; what is written there is written whole or not at all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)


class Byproduct:
    """A file that a run can do without. Its methods raise nothing that comes of the place it is written to.

    loss: what it means for people that it is not written.
    """

    def __init__(self, path: Path, loss: str = "cannot be written; the run goes on without it") -> None:
        self.path, self._loss = path, loss
        self._missed = 0

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """What fails in this context is told, and goes no further."""
        try:
            yield
        except Exception as error:
            self._missed += 1
            if self._missed == 1:  # set before the warning, which may itself go to this file
                log.warning("%s: %s: %s", self.path, self._loss, error)
        else:
            missed, self._missed = self._missed, 0
            if missed:
                log.warning("%s: can be written again; %d writes are missing there", self.path, missed)

    def append(self, data: bytes, head: bytes = b"") -> None:
        """Add `data` at the end, all of it or nothing; `head` comes before it in a file that is new."""
        with self.attempt():
            self._append(data, head)

    def append_line(self, line: str) -> None:
        """Add a line, which begins on its own even where a process was killed in the middle of the last one."""
        with self.attempt():
            self._append(line.encode(errors="backslashreplace") + b"\n", lines=True)

    def replace(self, text: str) -> None:
        """Have the file hold `text` alone; a reader sees the old text or the new one."""
        with self.attempt():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            written = self.path.with_name(f"{self.path.name}.new")
            try:
                written.write_text(text, encoding="utf-8")
                written.replace(self.path)
            except OSError:
                with suppress(OSError):
                    written.unlink()
                raise

    def _append(self, data: bytes, head: bytes = b"", lines: bool = False) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Not blocking, for the case that somebody has put a pipe in the file's place.
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
        try:
            size = os.fstat(handle).st_size
            if not size:
                data = head + data
            elif lines and os.pread(handle, 1, size - 1) != b"\n":
                data = b"\n" + data
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(handle, rest) :]
            except OSError:
                with suppress(OSError):  # nor can what is no file be cut
                    os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
