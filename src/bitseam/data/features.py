"""Tower features of a data set: kept on the client's disk where the tower is frozen, computed anew where it is tuned.

Shapes: I distinct images, B images of a batch, M image tokens, Dv tower width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from bitseam.config import canonical
from bitseam.data.images import open_image
from bitseam.data.rows import Row
from bitseam.errors import DataError, NonFiniteError
from bitseam.halves.client import ClientHalf

_BATCH = 32  # images a pass; small enough for a laptop's caches


class Features(Protocol):
    """Features of images."""

    def of(self, images: Sequence[Path]) -> Tensor:
        """B images -> (B, M, Dv) float32."""


class LiveFeatures:
    """Runs the tower each time, with gradient where it is tuned."""

    def __init__(self, half: ClientHalf) -> None:
        self._half = half

    def of(self, images: Sequence[Path]) -> Tensor:
        device = next(self._half.parameters()).device
        pixels = self._half.pixels([open_image(image) for image in images])
        return self._half.features(pixels.to(device))


class StoredFeatures:
    """Runs the frozen tower once for each distinct image, into one memory-mapped float16 file.

    The file's name is a digest of the tower's settings and of every image's path, size and time, so a changed picture
    is never answered from an old file.
    """

    def __init__(self, half: ClientHalf, settings: object, rows: Sequence[Row], folder: Path) -> None:
        images = sorted({row.image for row in rows})
        self._index = {image: i for i, image in enumerate(images)}
        digest = hashlib.sha256(canonical(settings).encode())
        for image in images:
            stat = image.stat()
            digest.update(f"{image.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        path = folder / f"{digest.hexdigest()[:32]}.npy"
        if not path.exists():
            _fill(path, half, images)
        self._array = np.load(path, mmap_mode="r")
        self._device = next(half.parameters()).device

    def of(self, images: Sequence[Path]) -> Tensor:
        picked = self._array[[self._index[image] for image in images]]
        return torch.from_numpy(picked).float().to(self._device)


def _fill(path: Path, half: ClientHalf, images: Sequence[Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial-{os.getpid()}")
    live = LiveFeatures(half)
    try:
        array: np.memmap | None = None
        for start in track(range(0, len(images), _BATCH), description="vision features"):
            batch = images[start : start + _BATCH]
            with torch.no_grad():
                features = live.of(batch).cpu()
            if not features.isfinite().all():
                raise NonFiniteError(f"the tower gives features that are not finite for one of {batch[0]} ...")
            if array is None:
                shape = (len(images), *features.shape[1:])
                array = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
            array[start : start + len(batch)] = features.half().numpy()
        assert array is not None
        array.flush()
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path}: the feature cache cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
