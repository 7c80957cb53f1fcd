"""Memory of freed tensors, where glibc has it: kept for the next ones, and given back to the system now and then.

Imports no torch, so that a program can ask for it first.
"""

from __future__ import annotations

import ctypes
import platform

TRIM_EVERY = 50  # steps: in some stretches holes grow by 7 MB a step

_GLIBC = platform.libc_ver()[0] == "glibc"
# Options of mallopt(3): trim threshold, maps, arenas (only the first one's memory can be kept without maps).
_KEEP = ((-1, 2**31 - 1), (-4, 0), (-8, 1))


def keep_freed() -> None:
    """Keep a large tensor's pages when it is freed. Giving them back and taking fresh ones is 8 % of a step."""
    if _GLIBC:
        for option, value in _KEEP:
            ctypes.CDLL(None).mallopt(option, value)


def trim_heap() -> None:
    """Give back free pages, also between memory in use.

    Batches have many shapes, so that new tensors do not fit where others were: a server's heap grew by a gigabyte in a
    thousand steps, most of it holes.
    """
    if _GLIBC:
        ctypes.CDLL(None).malloc_trim(0)
