"""Memory of freed tensors, which `bitseam.cli` lets glibc keep, given back to the system now and then."""

from __future__ import annotations

import ctypes
import platform

EVERY = 50  # steps: in some stretches holes grow by 7 MB a step

_GLIBC = platform.libc_ver()[0] == "glibc"


def trim_heap() -> None:
    """Give back free pages, also between memory in use. Without glibc, nothing.

    Batches have many shapes, so that new tensors do not fit where others were: a server's heap grew by a gigabyte in a
    thousand steps, most of it holes.
    """
    if _GLIBC:
        ctypes.CDLL(None).malloc_trim(0)
