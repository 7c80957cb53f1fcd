"""Signals that ask a side to stop are heard, whatever its threads are doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from bitseam.runs.stopping import told_by

# The main thread is nearly always inside `wait` when a signal comes, and so would hold any lock that it takes there.
_HAMMERED = """
import os, signal, threading, time
from bitseam.runs.stopping import told_by

with told_by((signal.SIGTERM,)) as told:
    over = threading.Event()

    def hammer():
        while not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    threading.Thread(target=hammer, daemon=True).start()
    end = time.monotonic() + 1
    while time.monotonic() < end:
        told.wait(0.0001)
    over.set()
    assert told.by is signal.SIGTERM
"""

_SLOW = """
import os, signal, time
from bitseam.runs.stopping import told_by

with told_by((signal.SIGTERM,), grace=0.2):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_a_signal_may_come_at_any_moment() -> None:
    done = subprocess.run([sys.executable, "-c", _HAMMERED], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_who_does_not_stop_in_time_is_ended() -> None:
    done = subprocess.run([sys.executable, "-c", _SLOW], timeout=50, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGTERM
    assert "ended by SIGTERM" in done.stderr


@pytest.mark.parametrize("grace", [None, 0.05])
def test_nothing_is_left_when_it_is_over(grace: float | None) -> None:
    before = signal.getsignal(signal.SIGUSR1), len(os.listdir("/proc/self/fd"))
    with told_by((signal.SIGUSR1,), grace) as told:
        assert not told.wait(0)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert told.wait(5)
    assert told.by is signal.SIGUSR1
    assert (signal.getsignal(signal.SIGUSR1), len(os.listdir("/proc/self/fd"))) == before
    time.sleep(0.1)  # past the grace: what has ended in time is not ended
