"""Tower features of a data set: kept on the client's disk where the tower is frozen, computed anew where it is tuned.

Shapes: I distinct images, B images of a batch, M image tokens, Dv tower width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bitseam.data.code import TOWER_CODE
from bitseam.data.images import open_image
from bitseam.data.inspection import content_of
from bitseam.data.loader import Loader
from bitseam.data.store import FeatureStore
from bitseam.errors import DataError
from bitseam.models.vision.half import VisionHalf


class Features(Protocol):
    """Features of images. ahead: how many micro-batches after the present one should be expected."""

    ahead: int

    def of(self, images: Sequence[Path]) -> Tensor:
        """B images -> (B, M, Dv) float32."""

    def expect(self, coming: Sequence[tuple[Path, ...]]) -> None:
        """What `of` will be asked for next, in order, so that it can be prepared."""


class LiveFeatures:
    """Runs the tower each time, with gradient where it is tuned.

    workers: processes that decode and resize what is expected; 0 leaves that to the caller's thread. Close it then.
    """

    def __init__(self, half: VisionHalf, workers: int = 0) -> None:
        self._half = half
        self.ahead = 2 * workers  # one in hand and one that is done, each
        self._loader = Loader(half.preprocessing().pixels, workers) if workers else None

    def expect(self, coming: Sequence[tuple[Path, ...]]) -> None:
        if self._loader:
            self._loader.expect(coming)

    def of(self, images: Sequence[Path]) -> Tensor:
        device = next(self._half.parameters()).device
        return self._half.features(self.pixels(images).to(device))

    def pixels(self, images: Sequence[Path]) -> Tensor:
        """B images -> (B, 3, H, W), decoded, resized and normalised; waits for a worker that is at it."""
        if self._loader:
            return torch.from_numpy(self._loader.of(images))
        return self._half.pixels([open_image(image) for image in images])

    def close(self) -> None:
        """End the workers."""
        if self._loader:
            self._loader.close()


class StoredFeatures:
    """Runs the frozen tower once for each picture, and keeps what comes in a folder of that tower below `folder`.

    contents: of each image that will be asked for, a digest of its file (`bitseam.data.inspection`). A picture is known
    by it, and a tower by its weights, its settings and the code that reads pictures and runs it.
    """

    ahead = 0  # a record is read in less time than a worker needs to hand it over

    def __init__(self, half: VisionHalf, contents: Mapping[Path, bytes], folder: Path) -> None:
        self._contents = contents
        self._store = FeatureStore(folder / tower_digest(half)[:32], (half.tower.tokens, half.tower.width))
        self._live = LiveFeatures(half)
        with torch.no_grad():
            self._store.fill({content: image for image, content in contents.items()}, self._compute)
        self._device = next(half.parameters()).device

    def expect(self, coming: Sequence[tuple[Path, ...]]) -> None:
        """Nothing to prepare."""

    def of(self, images: Sequence[Path]) -> Tensor:
        return torch.from_numpy(self._store.read([self._contents[image] for image in images])).to(self._device)

    def _compute(self, images: Sequence[Path]) -> Tensor:
        features = self._live.of(images)
        for image in images:
            if content_of(image) != self._contents[image]:
                raise DataError(f"{image}: the file was changed after it was checked; start again")
        return features


def tower_digest(half: VisionHalf) -> str:
    """SHA-256, in hex, of all that decides which features a picture has."""
    digest = hashlib.sha256(TOWER_CODE.encode())
    digest.update(json.dumps(half.settings(), sort_keys=True, default=str).encode())
    for name, tensor in half.tower.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
