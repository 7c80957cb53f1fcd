"""The demo's data: questions about CIFAR-10 photographs (Krizhevsky 2009), and about 2x2 mosaics of four of them.

    recognition  one photograph, "What is in the picture?"
    position     a mosaic, "What is in the top left?"
    existence    a mosaic, "Is there a cat?", as many yes as no

Training questions are composed from CIFAR-10's training photographs, test questions from its test photographs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from bitseam.data.rows import Row, write_rows

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PLACES = ("top left", "top right", "bottom left", "bottom right")
_TRAIN = 50_000  # the first of CIFAR-10's 60,000 photographs


def write_questions(cifar: Path, out: Path, train: int, test: int, seed: int) -> None:
    """Write `out`/train.jsonl and `out`/test.jsonl with their images.

    train, test: photographs; half as many mosaics in training, as many in the test. The test asks one question of
    each task. Training asks mosaics for all four places and four classes, and photographs for existence too: one object
    is the easier case of four, and existence is not learned in the demo's time without it.
    cifar: folder of the asset `cifar10`.
    """
    images = np.load(cifar / "images.npy", mmap_mode="r")
    labels = np.load(cifar / "labels.npy")
    rng = np.random.default_rng(seed)
    for name, sources, photographs, mosaics, places, classes in (
        ("train", np.arange(_TRAIN), train, train // 2, 4, 4),
        ("test", np.arange(_TRAIN, len(images)), test, test, 1, 1),
    ):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(photographs):
            pick = rng.choice(sources)
            path = folder / f"photo-{number:05d}.png"
            Image.fromarray(images[pick]).save(path)
            rows.append(Row(path, "What is in the picture?", CLASSES[labels[pick]], "recognition"))
            if name == "train":
                rows.append(_existence(path, [int(labels[pick])], number % 2 == 0, rng))
        for number in range(mosaics):
            picks = rng.choice(sources, 4, replace=False)
            tiles = [images[pick] for pick in picks]
            path = folder / f"mosaic-{number:05d}.png"
            Image.fromarray(np.block([[[tiles[0]], [tiles[1]]], [[tiles[2]], [tiles[3]]]])).save(path)
            rows += _mosaic_rows(path, [int(labels[pick]) for pick in picks], places, classes, number, rng)
        write_rows(out / f"{name}.jsonl", rows)


def _mosaic_rows(
    path: Path, shown: list[int], places: int, classes: int, number: int, rng: np.random.Generator
) -> list[Row]:
    rows = [
        Row(path, f"What is in the {PLACES[place]}?", CLASSES[shown[place]], "position")
        for place in rng.choice(4, places, replace=False)
    ]
    return rows + [_existence(path, shown, (number + turn) % 2 == 0, rng) for turn in range(classes)]


def _existence(path: Path, shown: list[int], yes: bool, rng: np.random.Generator) -> Row:
    absent = [c for c in range(len(CLASSES)) if c not in shown]
    asked = rng.choice(shown if yes else absent)
    return Row(path, f"Is there a {CLASSES[asked]}?", "yes" if yes else "no", "existence")
