"""Tower features of a data set: kept on the client's disk where the tower is frozen, computed anew where it is tuned.

Shapes: B images, each cut into k x k crops, m tokens of a crop, M = k^2 m of an image, Dv tower width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from bitseam.data.code import TOWER_CODE
from bitseam.data.images import open_crops
from bitseam.data.inspection import content_of, split_content
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
        self._loader = Loader(partial(_read, half.preprocessing()), workers) if workers else None

    def expect(self, coming: Sequence[tuple[Path, ...]]) -> None:
        if self._loader:
            self._loader.expect(coming)

    def of(self, images: Sequence[Path]) -> Tensor:
        device = next(self._half.parameters()).device
        return self._half.features(self.pixels(images).to(device))

    def pixels(self, images: Sequence[Path]) -> Tensor:
        """B images -> (B k^2, 3, S, S), decoded, cut, resized and normalised; waits for a worker that is at it."""
        if self._loader:
            return torch.from_numpy(self._loader.of(images))
        return _read(self._half, images)

    def close(self) -> None:
        """End the workers."""
        if self._loader:
            self._loader.close()


class StoredFeatures:
    """Runs the frozen tower once for each crop, and keeps what comes in a folder of that tower below `folder`.

    contents: of each image that will be asked for, the digests of its crops (`bitseam.data.inspection`). A crop is
    known by its digest, in whatever image it is, and a tower by its weights, its settings and the code that reads
    pictures and runs it.
    """

    ahead = 0  # a record is read in less time than a worker needs to hand it over

    def __init__(self, half: VisionHalf, contents: Mapping[Path, bytes], folder: Path) -> None:
        self._half, self._contents = half, contents
        self._device = next(half.parameters()).device
        self._store = FeatureStore(folder / tower_digest(half)[:32], (half.tower.tokens, half.tower.width))
        crops = {crop: image for image, content in contents.items() for crop in split_content(content)}
        with torch.no_grad():
            self._store.fill(crops, self._compute)

    def expect(self, coming: Sequence[tuple[Path, ...]]) -> None:
        """Nothing to prepare."""

    def of(self, images: Sequence[Path]) -> Tensor:
        crops = self._store.read([crop for image in images for crop in split_content(self._contents[image])])
        features = torch.from_numpy(crops).to(self._device)
        return self._half.join(features.unflatten(0, (len(images), -1)))

    def _compute(self, crops: Mapping[bytes, Path]) -> Tensor:
        """Crops by content, and an image that each is in -> (crops, m, Dv)."""
        found: dict[bytes, Image.Image] = {}
        for image in dict.fromkeys(crops.values()):
            pictures = open_crops(image, self._half.crops)
            contents = [content_of(picture) for picture in pictures]
            if b"".join(contents) != self._contents[image]:
                raise DataError(f"{image}: the file was changed after it was checked; start again")
            found.update(zip(contents, pictures, strict=True))
        return self._half.tower(self._half.crop_pixels([found[crop] for crop in crops]).to(self._device))


def _read(half: VisionHalf, images: Sequence[Path]) -> Tensor:
    return half.crop_pixels([crop for image in images for crop in open_crops(image, half.crops)])


def tower_digest(half: VisionHalf) -> str:
    """SHA-256, in hex, of all that decides which features the tower has for a crop."""
    digest = hashlib.sha256(TOWER_CODE.encode())
    digest.update(json.dumps(half.settings(), sort_keys=True, default=str).encode())
    for name, tensor in half.tower.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
