"""Images, and the composed questions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitseam.data.cifar_questions import CLASSES, PLACES, write_questions
from bitseam.data.images import open_image
from bitseam.data.rows import read_rows
from bitseam.errors import DataError


def picture(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("keep", [0, 10, 4000])
def test_unreadable_and_truncated_images_are_named(tmp_path: Path, keep: int) -> None:
    path = picture(tmp_path / "cut.png")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cut.png: not a readable image"):
        open_image(path)


def test_questions_are_true_balanced_and_of_separate_photographs(tmp_path: Path) -> None:
    count = 60_000
    images = np.zeros((count, 32, 32, 3), np.uint8)
    labels = np.arange(count) % 10
    # Each photograph wears its own number, so that a mosaic tells what it was made of.
    images[:, 0, 0] = np.stack([np.arange(count) >> 16, np.arange(count) >> 8 & 255, np.arange(count) & 255], 1)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    write_questions(tmp_path, tmp_path / "out", train=40, test=20, seed=0)
    sources: dict[str, set[int]] = {}
    asked_of = {"train": (40, 80, 120), "validation": (20, 20, 20), "test": (20, 20, 20)}
    for split, counts in asked_of.items():
        rows = read_rows(tmp_path / "out" / f"{split}.jsonl")
        sources[split] = set()
        tasks = [row.task for row in rows]
        assert tuple(tasks.count(task) for task in ("recognition", "position", "existence")) == counts
        yes = sum(row.answer == "yes" for row in rows if row.task == "existence")
        assert yes == counts[2] // 2
        for row in rows:
            pixels = np.asarray(Image.open(row.image)).astype(int)
            corners = [(0, 0)] if pixels.shape[0] == 32 else [(0, 0), (0, 32), (32, 0), (32, 32)]
            numbers = [int(pixels[y, x] @ [65536, 256, 1]) for y, x in corners]
            sources[split] |= set(numbers)
            shown = [CLASSES[n % 10] for n in numbers]
            if row.task == "recognition":
                assert row.answer == shown[0]
            elif row.task == "position":
                place = next(i for i, name in enumerate(PLACES) if name in row.question)
                assert row.answer == shown[place]
            else:
                asked = row.question.removeprefix("Is there a ").rstrip("?")
                assert row.answer == ("yes" if asked in shown else "no")
    assert max(sources["train"]) < 45_000 <= min(sources["validation"])
    assert max(sources["validation"]) < 50_000 <= min(sources["test"])
