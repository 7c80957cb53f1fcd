"""Worker processes that decode and resize images ahead of the step.

They are fresh interpreters, never forked from a process that has threads of gRPC, and end with the process that they
work for, however it ends. A supervisor that tells all processes of a run to stop does not end them before it: the step
under way needs them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from bitseam.errors import DataError

_STOPPING = (signal.SIGTERM, signal.SIGHUP)

Pixels = Callable[[Sequence[Path]], Any]  # image files -> tensor (pictures, 3, S, S)


class _Worker(SpawnProcess):
    """Signals to stop are held off from its first moment on: a process begins with the mask of who starts it."""

    def start(self) -> None:
        resource_tracker.ensure_running()  # or starting the process would, and that changes the mask
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Shielded(SpawnContext):
    Process = _Worker


def start_workers(count: int, prepare: Callable[..., None] | None = None, *given: object) -> ProcessPoolExecutor:
    """A pool of processes. prepare: is called in each with what is given, before its first task."""
    context = _Shielded() if sys.platform == "linux" else multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, partial(_begin, prepare, *given))


def lost_worker() -> DataError:
    """What is said where a process of `start_workers` was killed."""
    return DataError(
        "a process that decodes images ended, perhaps killed for want of memory, or because the script that it is of "
        'does not stand below `if __name__ == "__main__":`; data.workers = 0 decodes without any'
    )


class Loader:
    """Pixels of coming micro-batches, read by `pixels` ahead of time in `workers` processes, at least one.

    A set of images that was not expected is prepared when it is asked for; what comes is the same either way.
    """

    def __init__(self, pixels: Pixels, workers: int) -> None:
        self._pool = start_workers(workers, _take, pixels)
        self._coming: dict[tuple[Path, ...], Future[np.ndarray]] = {}

    def expect(self, coming: Sequence[tuple[Path, ...]]) -> None:
        """Begin with what will be asked for, in this order, and drop what will not."""
        for images in [known for known in self._coming if known not in coming]:
            self._coming.pop(images).cancel()
        for images in coming:
            if images not in self._coming:
                self._coming[images] = self._submit(images)

    def of(self, images: Sequence[Path]) -> np.ndarray:
        """What `pixels` makes of the images. Raises DataError that names a bad file, or tells of a killed worker."""
        future = self._coming.pop(tuple(images), None) or self._submit(tuple(images))
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise lost_worker() from error

    def close(self) -> None:
        """End the workers; what they have begun is thrown away."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, images: tuple[Path, ...]) -> Future[np.ndarray]:
        try:
            return self._pool.submit(_load, images)
        except BrokenProcessPool as error:
            raise lost_worker() from error


_pixels: Pixels  # of a worker


def _begin(prepare: Callable[..., None] | None, *given: object) -> None:
    """In a worker: signals are for the process that it works for, and that one's end is its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform == "linux":
        Thread(target=_end_when_told, args=(parent.pid,), daemon=True).start()
    Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    if prepare is not None:
        prepare(*given)


def _end_when_told(parent: int) -> None:
    """By the process that it works for: others tell that one, too."""
    while signal.sigwaitinfo(_STOPPING).si_pid != parent:
        pass
    os._exit(1)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _take(pixels: Pixels) -> None:
    global _pixels
    import torch  # in a worker that needs it alone

    torch.set_num_threads(1)
    _pixels = pixels


def _load(images: Sequence[Path]) -> np.ndarray:
    return _pixels(images).numpy()
