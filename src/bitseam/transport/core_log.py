"""gRPC's own log into ours: why a TLS handshake failed is said nowhere else.

Python's gRPC has no callback for a failed handshake, no certificate verifier on the server, and none of the hooks of
the core's log; the core writes one line to C's `stderr`. So that stream, a variable in glibc ("Standard Streams"), is
pointed at a pipe that we read. File descriptor 2 stays what it was: Python, the interpreter's crash reports, libstdc++
and child processes write to it as before.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import logging
import os
import platform
import re
import threading
import time
from contextlib import suppress
from typing import TextIO

log = logging.getLogger(__name__)

_HIDING = {"ERROR", "NONE"}  # settings of GRPC_VERBOSITY
_LINE_BUFFERED = 1  # _IOLBF of glibc's stdio.h
_FAILED = re.compile(r"\] Handshake failed with (?:.*OPENSSL_internal:)?(.+)")
_QUIET = 10.0  # seconds for which a reason is told once: a stranger who knocks for ever does not fill the disk


@functools.cache
def log_failed_handshakes() -> None:
    """From now on, each TLS handshake that fails in this process is a warning in our log, with its reason.

    Where the C library is another than glibc, gRPC goes on writing them to stderr. A message of a C library that aborts
    the process may be lost in the pipe.
    """
    hidden = os.environ.get("GRPC_VERBOSITY", "").upper() in _HIDING
    if hidden or platform.libc_ver()[0] != "glibc":
        where = "not told: GRPC_VERBOSITY hides it" if hidden else "told on stderr by gRPC, and not in this log"
        log.warning("why a TLS handshake failed is %s", where)
        return
    libc = ctypes.CDLL(None)
    libc.fdopen.argtypes, libc.fdopen.restype = [ctypes.c_int, ctypes.c_char_p], ctypes.c_void_p
    libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t]
    stream = ctypes.c_void_p.in_dll(libc, "stderr")
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)  # what does not fit is dropped: gRPC never waits for our log
    pipe, before = libc.fdopen(theirs, b"w"), stream.value
    libc.setvbuf(pipe, None, _LINE_BUFFERED, 0)
    lines = os.fdopen(ours, errors="replace")
    threading.Thread(target=_read, args=(lines,), daemon=True, name="bitseam-core-log").start()
    stream.value = pipe
    atexit.register(setattr, stream, "value", before)


def _read(lines: TextIO) -> None:
    told: dict[str, tuple[float, int]] = {}  # reason -> when it was last told, how often it came since
    for line in lines:
        if (failed := _FAILED.search(line)) is None:
            with suppress(OSError):  # nobody reads it any more
                os.write(2, line.encode())
            continue
        reason, now = _reason(failed[1]), time.monotonic()
        last, since = told.get(reason, (now - _QUIET, 0))
        if now - last < _QUIET:
            told[reason] = last, since + 1
            continue
        told[reason] = now, 0
        more = f" ({since} more since this was last told)" if since else ""
        log.warning("a TLS handshake failed, and nobody was let in: %s%s", reason, more)


def _reason(text: str) -> str:
    """BoringSSL's code; what follows says more only where it is about a certificate."""
    code, _, detail = text.strip().partition(": ")
    return f"{code}: {detail}" if code == "CERTIFICATE_VERIFY_FAILED" else code
