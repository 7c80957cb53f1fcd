"""Image files looked at before a run: each is decoded whole, and known by its content from then on.

A file that was good is not read again while its path, size and times are the same.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image
from rich.progress import track

from bitseam.console import Terminal
from bitseam.data.code import PICTURE_CODE
from bitseam.data.images import open_crops
from bitseam.data.loader import lost_worker, start_workers
from bitseam.data.memory import Memory
from bitseam.errors import DataError

_CHUNK = 64  # images a task; fewer are looked at without workers
_KEPT = 64  # chunks, after which what was found is kept
_DIGEST = 32  # bytes, of SHA-256


@dataclass(frozen=True)
class Inspected:
    """contents: of each good image the digests of its crops (`content_of`), one after the other and row by row.
    faults: what is wrong with each other image."""

    contents: dict[Path, bytes] = field(default_factory=dict)
    faults: dict[Path, str] = field(default_factory=dict)


def inspect_images(images: Iterable[Path], memory: Memory, crops: int = 1, workers: int = 0) -> Inspected:
    """Look at each distinct image, cut into crops x crops. Raises DataError where a worker process is killed."""
    inspected = Inspected()
    keys = _keys(images, crops, inspected.faults)
    known = memory.recall(keys.values())
    inspected.contents.update((image, known[key]) for image, key in keys.items() if key in known)
    unknown = [image for image in keys if image not in inspected.contents]
    fresh: dict[bytes, bytes] = {}
    for number, looks in enumerate(_look_at_all(unknown, crops, workers), 1):
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


def content_of(picture: Image.Image) -> bytes:
    """SHA-256 of a decoded picture written as a PPM file, which has its size and pixels and nothing else: the same
    photograph is known again in whatever file it lies, and as a crop of whatever image."""
    file = io.BytesIO()
    picture.save(file, "PPM")
    return hashlib.sha256(file.getbuffer()).digest()


def split_content(content: bytes) -> list[bytes]:
    """An image's content -> those of its crops, row by row."""
    return [content[start : start + _DIGEST] for start in range(0, len(content), _DIGEST)]


def contents_of(images: Iterable[Path], memory: Memory, crops: int = 1) -> dict[Path, bytes]:
    """Contents of images, as `Inspected` has them. Raises DataError that names what is not a good image."""
    inspected = inspect_images(images, memory, crops)
    if inspected.faults:
        raise DataError("\n".join(inspected.faults.values()))
    return inspected.contents


def _keys(images: Iterable[Path], crops: int, faults: dict[Path, str]) -> dict[Path, bytes]:
    """A key for each image that can be reached, which changes with its file and with what decodes and cuts it."""
    keys, here = {}, os.getcwd()
    for image in dict.fromkeys(images):
        try:
            stat = os.stat(image)
        except OSError as error:
            faults[image] = f"{image}: {error.strerror}"
            continue
        times = f"{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
        whole = f"{PICTURE_CODE}\0{crops}\0{os.path.join(here, image)}\0{times}"
        keys[image] = hashlib.sha256(whole.encode(errors="surrogateescape")).digest()
    return keys


def _look_at_all(images: Sequence[Path], crops: int, workers: int) -> Iterator[list[tuple[Path, bytes, str]]]:
    chunks = [images[start : start + _CHUNK] for start in range(0, len(images), _CHUNK)]
    pool = start_workers(workers) if workers and len(chunks) > 1 else None
    look = partial(_look, crops)
    looks = pool.map(look, chunks) if pool else map(look, chunks)
    try:
        yield from track(
            looks, "images", total=len(chunks), console=Terminal(stderr=True), disable=len(chunks) < 2, transient=True
        )
    except BrokenProcessPool as error:
        raise lost_worker() from error
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def _look(crops: int, images: Sequence[Path]) -> list[tuple[Path, bytes, str]]:
    """Each with its content, or with what is wrong."""
    looks = []
    for image in images:
        try:
            looks.append((image, b"".join(map(content_of, open_crops(image, crops))), ""))
        except DataError as error:
            looks.append((image, b"", str(error)))
    return looks
