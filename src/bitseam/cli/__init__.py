"""The command line."""

import os

from bitseam.runs.heap import keep_freed

# OpenMP's threads spin for some 15 ms after each parallel region. On one machine, or on a server with several sessions,
# that takes the cores from the half whose turn it is: a split step is 15 % faster with a short spin. Read once, when
# torch is loaded, hence here.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

keep_freed()  # from the first tensor on
