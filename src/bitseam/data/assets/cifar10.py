"""CIFAR-10 (Krizhevsky, 2009): six PNGs of 10,000 rows, a photo a row, to one array that can be mapped."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from bitseam.errors import AssetError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
ROWS = 10_000


def convert(source: Path, out: Path) -> None:
    """Write images.npy uint8 (60000, 32, 32, 3), labels.npy int64 (60000,) and meta.json; test is the last 10,000.

    Raises AssetError where a picture or a list of labels has another size.
    """
    folder = source / "package"
    images = np.lib.format.open_memmap(
        out / "images.npy", mode="w+", dtype=np.uint8, shape=(len(BATCHES) * ROWS, 32, 32, 3)
    )
    for number, batch in enumerate(BATCHES):
        with Image.open(folder / f"{batch}.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))
        if pixels.shape != (ROWS, 1024, 3):
            raise AssetError(f"{batch}.png is {pixels.shape[1]}x{pixels.shape[0]} pixels, not 1024x{ROWS}")
        images[number * ROWS : (number + 1) * ROWS] = pixels.reshape(ROWS, 32, 32, 3)
    images.flush()
    names = ("train_lables.json", "test_lables.json")  # spelt so in the package
    labels = np.array([label for name in names for label in json.loads((folder / name).read_text())], dtype=np.int64)
    if len(labels) != len(images) or set(labels.tolist()) != set(range(len(CLASSES))):
        raise AssetError(f"the label files hold {len(labels)} labels for {len(images)} images of 10 classes")
    np.save(out / "labels.npy", labels)
    meta = {"classes": CLASSES, "splits": {"train": [0, 5 * ROWS], "test": [5 * ROWS, 6 * ROWS]}}
    (out / "meta.json").write_text(json.dumps(meta, indent=1))
