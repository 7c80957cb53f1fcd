"""The command line."""

import ctypes
import os
import platform

# OpenMP's threads spin for some 15 ms after each parallel region. On one machine, or on a server with several sessions,
# that takes the cores from the half whose turn it is: a split step is 15 % faster with a short spin. Read once, when
# torch is loaded, hence here.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# glibc gives a large tensor's pages back to the system when it is freed and takes fresh ones for the next: 8 % of a
# step. It keeps them here, and `bitseam.parties.heap` gives them back now and then. Numbers of mallopt(3): trim
# threshold, maps, arenas (only the first one's memory can be kept without maps).
if platform.libc_ver()[0] == "glibc":
    for option, value in ((-1, 2**31 - 1), (-4, 0), (-8, 1)):
        ctypes.CDLL(None).mallopt(option, value)
