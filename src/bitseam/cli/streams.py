"""What a command prints: never a reason for it to end, whatever becomes of the terminal, the pipe or the file."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TextIO


class _Descriptor(io.FileIO):
    """A file descriptor that is written to as long as that works. lost: the first error since `take_over`."""

    lost: OSError | None = None

    def write(self, data: object) -> int:
        size = len(memoryview(data).cast("B"))  # type: ignore[arg-type]
        try:
            while (written := super().write(data)) is None:  # type: ignore[arg-type]  # a pipe that does not block
                select.select([], [self], [])
            return written
        except OSError as error:
            self.lost = self.lost or error
            return size


def take_over() -> None:
    """Have standard output and error accept all that is printed, in every encoding, with or without a reader.

    Descriptors 0 to 2 that are closed are opened on nothing: the next file, a checkpoint say, would get their number,
    and what a library prints would go into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stdout is sys.__stdout__:  # and nobody has put something else in its place
        sys.stdout = _stream(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(sys.stderr, 2)


def lost_output() -> OSError | None:
    """Why standard output did not arrive where it was to be kept; a reader who has gone is no such reason."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    lost = getattr(raw, "lost", None)
    return lost if lost is not None and lost.errno not in (errno.EPIPE, errno.EIO) else None


def _stream(before: TextIO | None, descriptor: int) -> TextIO:
    encoding = before.encoding if before is not None else "utf-8"
    # closefd=False: descriptors 1 and 2 stay open, for child processes and C libraries.
    raw = io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True, write_through=True)
