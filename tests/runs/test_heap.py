"""Memory that is free goes back to the system."""

import platform
import subprocess
import sys

import pytest

HOLES = """
import bitseam.cli  # glibc keeps pages from here on
import torch
from bitseam.runs.heap import trim_heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

kept = [(torch.ones(1 << 20), torch.ones(64)) for _ in range(50)]  # 4 MiB each, with something small after it
full = resident()
kept = [small for _, small in kept]
freed = resident()
trim_heap()
assert sum(float(small.sum()) for small in kept) == 50 * 64
print(full - freed, full - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="of glibc on Linux")
def test_holes_are_given_back() -> None:
    kept, given = map(int, subprocess.check_output([sys.executable, "-c", HOLES], text=True).split())
    assert kept < 20 << 20  # the command line keeps them ...
    assert given > 150 << 20  # ... until they are trimmed
