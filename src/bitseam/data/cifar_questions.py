"""The demo's data: questions about CIFAR-10 photographs (Krizhevsky 2009), and about 2x2 mosaics of four of them.

    recognition  one photograph, "What is in the picture?"
    position     a mosaic, "What is in the top left?"
    existence    a mosaic, "Is there a cat?", as many yes as no

Training and validation questions are composed from two parts of CIFAR-10's training photographs, test questions from
its test photographs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from bitseam.data.rows import Row, write_rows

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PLACES = ("top left", "top right", "bottom left", "bottom right")
_PARTS = {"train": (0, 45_000), "validation": (45_000, 50_000), "test": (50_000, 60_000)}  # of CIFAR-10's photographs


def write_questions(cifar: Path, out: Path, train: int, test: int, seed: int) -> None:
    """Write `out`/train.jsonl, validation.jsonl and test.jsonl with their images.

    train, test: photographs; half as many mosaics in training, as many in the test. Validation is as large as the test,
    and both ask one question of each task. Training asks mosaics for all four places and four classes, and photographs
    for existence too: one object is the easier case of four, and existence is not learned in the demo's time without
    it.
    cifar: folder of the asset `cifar10`.
    """
    images = np.load(cifar / "images.npy", mmap_mode="r")
    labels = np.load(cifar / "labels.npy")
    rng = np.random.default_rng(seed)
    for name, (first, end) in _PARTS.items():
        sources = np.arange(first, end)
        photographs, mosaics, turns = (train, train // 2, 4) if name == "train" else (test, test, 1)
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
            rows += _mosaic_rows(path, [int(labels[pick]) for pick in picks], turns, number, rng)
        write_rows(out / f"{name}.jsonl", rows)


def _mosaic_rows(path: Path, shown: list[int], turns: int, number: int, rng: np.random.Generator) -> list[Row]:
    rows = [
        Row(path, f"What is in the {PLACES[place]}?", CLASSES[shown[place]], "position")
        for place in rng.choice(4, turns, replace=False)
    ]
    return rows + [_existence(path, shown, (number + turn) % 2 == 0, rng) for turn in range(turns)]


def _existence(path: Path, shown: list[int], yes: bool, rng: np.random.Generator) -> Row:
    absent = [c for c in range(len(CLASSES)) if c not in shown]
    asked = rng.choice(shown if yes else absent)
    return Row(path, f"Is there a {CLASSES[asked]}?", "yes" if yes else "no", "existence")
