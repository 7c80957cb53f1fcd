"""Image files looked at before a run: each is decoded whole, and known by its content from then on.

A file that was good is not read again while its path, size and times are the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import track

from bitseam.console import Terminal
from bitseam.data.code import PICTURE_CODE
from bitseam.data.images import open_image
from bitseam.data.loader import lost_worker, start_workers
from bitseam.data.memory import Memory
from bitseam.errors import DataError

_CHUNK = 64  # images a task; fewer are looked at without workers
_KEPT = 64  # chunks, after which what was found is kept


@dataclass(frozen=True)
class Inspected:
    """contents: SHA-256 of the file of each good image. faults: what is wrong with each other."""

    contents: dict[Path, bytes] = field(default_factory=dict)
    faults: dict[Path, str] = field(default_factory=dict)


def inspect_images(images: Iterable[Path], memory: Memory, workers: int = 0) -> Inspected:
    """Look at each distinct image. Raises DataError where a worker process is killed."""
    inspected = Inspected()
    keys = _keys(images, inspected.faults)
    known = memory.recall(keys.values())
    inspected.contents.update((image, known[key]) for image, key in keys.items() if key in known)
    unknown = [image for image in keys if image not in inspected.contents]
    fresh: dict[bytes, bytes] = {}
    for number, looks in enumerate(_look_at_all(unknown, workers), 1):
        for image, content, fault in looks:
            if fault:
                inspected.faults[image] = fault
            else:
                inspected.contents[image] = fresh[keys[image]] = content
        if number % _KEPT == 0:
            memory.keep(fresh)
            fresh = {}
    memory.keep(fresh)
    return inspected


def content_of(image: Path) -> bytes:
    """SHA-256 of a file. Raises OSError."""
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def contents_of(images: Iterable[Path], memory: Memory) -> dict[Path, bytes]:
    """A digest of each image's file. Raises DataError that names what is not a good image."""
    inspected = inspect_images(images, memory)
    if inspected.faults:
        raise DataError("\n".join(inspected.faults.values()))
    return inspected.contents


def _keys(images: Iterable[Path], faults: dict[Path, str]) -> dict[Path, bytes]:
    """A key for each image that can be reached, which changes with its file and with what decodes it."""
    keys, here = {}, os.getcwd()
    for image in dict.fromkeys(images):
        try:
            stat = os.stat(image)
        except OSError as error:
            faults[image] = f"{image}: {error.strerror}"
            continue
        times = f"{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
        whole = f"{PICTURE_CODE}\0{os.path.join(here, image)}\0{times}"
        keys[image] = hashlib.sha256(whole.encode(errors="surrogateescape")).digest()
    return keys


def _look_at_all(images: Sequence[Path], workers: int) -> Iterator[list[tuple[Path, bytes, str]]]:
    chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    pool = start_workers(workers) if workers and len(chunks) > 1 else None
    looks = pool.map(_look, chunks) if pool else map(_look, chunks)
    try:
        yield from track(
            looks, "images", total=len(chunks), console=Terminal(stderr=True), disable=len(chunks) < 2, transient=True
        )
    except BrokenProcessPool as error:
        raise lost_worker() from error
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def _look(images: Sequence[Path]) -> list[tuple[Path, bytes, str]]:
    """Each with its content's digest, or with what is wrong."""
    looks = []
    for image in images:
        try:
            open_image(image)
            looks.append((image, content_of(image), ""))
        except DataError as error:
            looks.append((image, b"", str(error)))
        except OSError as error:
            looks.append((image, b"", f"{image}: {error.strerror}"))
    return looks
