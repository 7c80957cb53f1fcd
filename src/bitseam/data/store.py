"""Features of pictures on the disk: fixed-size records in two growing files, and an index of them in SQLite. A crop of
an image is a picture of its own.

    FOLDER/float16   FOLDER/float32   records; float32 where float16 would lose more than rounding
    FOLDER/index                      which picture is which record of which file
    FOLDER/lock                       held by the one process that writes

A record is written before its index entry, so what a killed process leaves half written is never believed. Files are
read and written by calls, not mapped: where the disk is full, that is an error and no signal.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from torch import Tensor

from bitseam.console import Terminal
from bitseam.errors import DataError, NonFiniteError

log = logging.getLogger(__name__)

_BATCH = 32  # pictures a pass; small enough for a laptop's caches
_SECONDS = 2.0  # between two times that the index is written
_ENTRY = 128  # bytes of a picture in the index, at most
_INDEX = 1 << 16  # bytes of an empty index, and what SQLite needs to change it
_TABLE = "CREATE TABLE IF NOT EXISTS pictures (content BLOB PRIMARY KEY, file TEXT, record INTEGER) WITHOUT ROWID"
_TYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}
_LOSS = 1e-3  # of a picture's features, by their norm; rounding alone loses at most half of it


class FeatureStore:
    """Records of shape (m, Dv) by content of a picture. Methods raise DataError that names the folder."""

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        self._folder, self._shape = folder, shape
        self._sizes = {name: shape[0] * shape[1] * dtype.itemsize for name, dtype in _TYPES.items()}
        self._records: dict[str, dict[bytes, int]] = {name: {} for name in _TYPES}

    def fill(self, pictures: Mapping[bytes, Path], compute: Callable[[Mapping[bytes, Path]], Tensor]) -> None:
        """Have a record of each content. pictures: with each, an image file that shows it.

        compute: such contents and files -> (pictures, m, Dv), asked for those that are not there. Says what it will
        take before it takes it. Raises NonFiniteError where the tower gives such features.
        """
        with self._named_errors():
            self._find_what_is_there(pictures)
            if self._missing(pictures):
                with self._alone() as index:
                    try:
                        self._find(index, self._missing(pictures))  # another process may have been at it
                        if missing := self._missing(pictures):
                            self._append(index, {content: pictures[content] for content in missing}, compute)
                    finally:
                        if not index.execute("SELECT 1 FROM pictures LIMIT 1").fetchone():
                            shutil.rmtree(self._folder, ignore_errors=True)

    def read(self, contents: Sequence[bytes]) -> np.ndarray:
        """Contents that `fill` was given -> (pictures, m, Dv) float32."""
        out = np.empty((len(contents), *self._shape), np.float32)
        with self._named_errors():
            for i, content in enumerate(contents):
                name = next(name for name, records in self._records.items() if content in records)
                size = self._sizes[name]
                with (self._folder / name).open("rb", buffering=0) as file:
                    data = os.pread(file.fileno(), size, self._records[name][content] * size)
                if len(data) != size:
                    raise DataError(f"{self._folder}: the feature cache was cut short by another process; start again")
                out[i] = np.frombuffer(data, _TYPES[name]).reshape(self._shape)
        return out

    def _missing(self, contents: Iterable[bytes]) -> list[bytes]:
        return [content for content in contents if not any(content in known for known in self._records.values())]

    def _find_what_is_there(self, contents: Iterable[bytes]) -> None:
        """Without writing, so that a complete cache may be read-only."""
        path = self._folder / "index"
        if path.exists() and path.stat().st_size:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as index:
                self._find(index, contents)

    def _find(self, index: sqlite3.Connection, contents: Iterable[bytes]) -> None:
        for content in contents:
            row = index.execute("SELECT file, record FROM pictures WHERE content = ?", (content,)).fetchone()
            if row is not None:
                self._records[row[0]][content] = row[1]

    def _append(
        self,
        index: sqlite3.Connection,
        pictures: Mapping[bytes, Path],
        compute: Callable[[Mapping[bytes, Path]], Tensor],
    ) -> None:
        contents = list(pictures)
        with _Writer(self._folder, index, self._sizes) as writer:
            starts = range(0, len(contents), _BATCH)
            console, few = Terminal(stderr=True), len(starts) < 2
            for start in track(starts, "vision features", console=console, disable=few, transient=True):
                batch = contents[start : start + _BATCH]
                features = compute({content: pictures[content] for content in batch}).float().cpu()
                assert features.shape[1:] == self._shape
                finite = features.isfinite().flatten(1).all(1).tolist()
                if not all(finite):
                    image = pictures[batch[finite.index(False)]]
                    raise NonFiniteError(f"{image}: the tower's features of this image are not finite")
                names = ["float32" if wide else "float16" for wide in _loses_in_half(features).tolist()]
                if start == 0:  # if one picture of the first needs float32, count on it for all
                    writer.reserve(max(names, key=self._sizes.__getitem__), len(contents))
                for content, name, record in zip(batch, names, features.numpy(), strict=True):
                    self._records[name][content] = writer.write(content, name, record.astype(_TYPES[name]).tobytes())

    @contextmanager
    def _alone(self) -> Iterator[sqlite3.Connection]:
        """The index, while no other process writes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: waiting for another process that computes features", self._folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                index = sqlite3.connect(self._folder / "index", timeout=60)
                index.execute(_TABLE)
            except sqlite3.Error:
                if not any((self._folder / name).exists() for name in _TYPES):
                    shutil.rmtree(self._folder, ignore_errors=True)
                raise
            with closing(index):
                yield index

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise DataError(f"{self._folder}: the feature cache cannot be used: {error}; {_REMEDY}") from error


_REMEDY = (
    "make room, move the cache with BITSEAM_CACHE, or set data.cache_features = false to compute features in each step"
)


class _Writer:
    """Appends records, and enters them into the index every few seconds and at the end, also where that is an error.

    Space that was reserved and not used is given back.
    """

    def __init__(self, folder: Path, index: sqlite3.Connection, sizes: Mapping[str, int]) -> None:
        self._folder, self._index, self._sizes = folder, index, sizes
        counts = dict(index.execute("SELECT file, MAX(record) + 1 FROM pictures GROUP BY file").fetchall())
        self._next = {name: counts.get(name, 0) for name in sizes}
        self._files: dict[str, int] = {}
        self._entries: list[tuple[bytes, str, int]] = []
        self._saved = time.monotonic()

    def __enter__(self) -> _Writer:
        for name in self._sizes:
            self._files[name] = os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._save()
        finally:
            for name, file in self._files.items():
                os.ftruncate(file, self._next[name] * self._sizes[name])
                os.close(file)

    def reserve(self, name: str, count: int) -> None:
        """Room for so many more records. Raises DataError with the figures, or OSError, where there is not enough."""
        size = count * self._sizes[name]
        free = shutil.disk_usage(self._folder).free
        told = f"features of {count:,} pictures: {_amount(size)} in {self._folder}; {_amount(free)} free"
        if size + count * _ENTRY + _INDEX > free:
            raise DataError(f"{told}: {_REMEDY}")
        log.info("%s", told)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._files[name], self._next[name] * self._sizes[name], size)

    def write(self, content: bytes, name: str, data: bytes) -> int:
        """Returns the number of the record."""
        number = self._next[name]
        view, place = memoryview(data), number * self._sizes[name]
        while view:
            written = os.pwrite(self._files[name], view, place)
            view, place = view[written:], place + written
        self._next[name] += 1
        self._entries.append((content, name, number))
        if time.monotonic() - self._saved > _SECONDS:
            self._save()
        return number

    def _save(self) -> None:
        for file in self._files.values():
            os.fsync(file)
        with self._index:
            self._index.executemany("INSERT INTO pictures VALUES (?, ?, ?)", self._entries)
        self._entries, self._saved = [], time.monotonic()


def _loses_in_half(features: Tensor) -> Tensor:
    """(pictures, m, Dv) float32 -> (pictures,) bool: whether float16 overflows, or is too coarse near zero."""
    exact = features.double().flatten(1)
    lost = exact - features.half().double().flatten(1)
    return ~(lost.norm(dim=1) <= _LOSS * exact.norm(dim=1))


def _amount(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e10 else f"{size / 1e6:,.1f} MB"
