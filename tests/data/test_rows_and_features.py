"""Rows, images, cached features, batches and the composed questions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Tiny, make_recipe
from PIL import Image

from bitseam.data.batches import Batches
from bitseam.data.cifar_questions import CLASSES, PLACES, write_questions
from bitseam.data.features import LiveFeatures, StoredFeatures
from bitseam.data.images import open_image
from bitseam.data.rows import Row, read_rows, write_rows
from bitseam.errors import DataError
from bitseam.halves.client import load_client_half
from bitseam.parties.prompts import Prompter


def picture(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", r"rows.jsonl:2: not JSON"),
        ("[1]", r"rows.jsonl:2: a row is an object"),
        ('{"question": "a", "answer": "b"}', r"rows.jsonl:2: image is missing"),
        ('{"image": "0.png", "answer": "b"}', r"rows.jsonl:2: question is missing"),
        ('{"image": "0.png", "question": "a"}', r"rows.jsonl:2: answer is missing"),
        ('{"image": "0.png", "question": "a", "answer": " "}', r"rows.jsonl:2: answer is missing"),
        ('{"image": "9.png", "question": "a", "answer": "b"}', r"rows.jsonl:2: image .*9.png does not exist"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str, complaint: str) -> None:
    picture(tmp_path / "0.png")
    good = json.dumps({"image": "0.png", "question": "a", "answer": "b"})
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError, match=complaint):
        read_rows(path)


def test_rows_round_trip_and_empty_files_are_refused(tmp_path: Path) -> None:
    rows = [Row(picture(tmp_path / "0.png"), "what?", "a cat", "cats")]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        read_rows(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"absent.jsonl: cannot be read"):
        read_rows(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("keep", [0, 10, 4000])
def test_unreadable_and_truncated_images_are_named(tmp_path: Path, keep: int) -> None:
    path = picture(tmp_path / "cut.png")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cut.png: not a readable image"):
        open_image(path)


def test_stored_features_are_the_live_ones_and_follow_the_pictures(tiny: Tiny, tmp_path: Path) -> None:
    half = load_client_half(make_recipe(tiny).client, 32)
    rows = [Row(picture(tmp_path / f"{i}.png", i), "q", "a") for i in (0, 1, 2)] * 2
    images = [row.image for row in rows]
    live = LiveFeatures(half).of(images[1:4])
    stored = StoredFeatures(half, {"layer": 1}, rows, tmp_path / "cache")
    torch.testing.assert_close(stored.of(images[1:4]), live, rtol=2e-3, atol=2e-3)  # float16 on the disk
    files = set((tmp_path / "cache").iterdir())
    assert len(files) == 1
    StoredFeatures(half, {"layer": 1}, rows, tmp_path / "cache")
    assert set((tmp_path / "cache").iterdir()) == files  # read, not made again
    StoredFeatures(half, {"layer": 2}, rows, tmp_path / "cache")
    picture(tmp_path / "1.png", seed=77)
    fresh = StoredFeatures(half, {"layer": 1}, rows, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert not torch.allclose(fresh.of(images[1:2]), stored.of(images[1:2]), atol=1e-2)


def test_a_feature_cache_that_breaks_off_leaves_no_file(tiny: Tiny, tmp_path: Path) -> None:
    half = load_client_half(make_recipe(tiny).client, 32)
    rows = [Row(picture(tmp_path / f"{i}.png", i), "q", "a") for i in range(2)]
    rows[1].image.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1.png: not a readable image"):
        StoredFeatures(half, {}, rows, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_batches_cover_an_epoch_and_can_be_looked_up_in_any_order(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny)
    half = load_client_half(recipe.client, 32)
    rows = [Row(picture(tmp_path / f"{i}.png", i), "dog ?", "yes") for i in range(6)]
    seen: list[Path] = []

    class Spy(LiveFeatures):
        def of(self, images):
            seen.extend(images)
            return super().of(images)

    batches = Batches(rows, Spy(half), Prompter(recipe.text), 2, seed=3)
    first = [batches(i)[0] for i in range(3)]
    assert sorted(seen) == sorted(row.image for row in rows)
    seen.clear()
    [batches(i) for i in (3, 4, 5)]
    second = list(seen)
    seen.clear()
    assert torch.equal(batches(1)[0], first[1])
    [batches(i) for i in (3, 4, 5)]
    assert seen[2:] == second
    with pytest.raises(DataError, match="fewer than one batch"):
        Batches(rows, LiveFeatures(half), Prompter(recipe.text), 7, seed=3)


def test_questions_about_one_image_stay_together(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny)
    images = [picture(tmp_path / f"{i}.png", i) for i in range(8)]
    rows = [Row(images[i % 8], f"dog {i // 8} ?", "yes") for i in range(32)]  # scattered over the file
    seen: list[Path] = []

    class Spy(LiveFeatures):
        def of(self, images):
            seen.extend(images)
            return super().of(images)

    batches = Batches(rows, Spy(load_client_half(recipe.client, 32)), Prompter(recipe.text), 8, seed=3)
    for number in range(4):
        features, text = batches(number)
        assert len(features) == 2
        assert text.image.tolist() == [0] * 4 + [1] * 4
    assert sorted(seen) == sorted(images)  # each once, for all four questions


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
    for split, counts in (("train", (40, 80, 120)), ("test", (20, 20, 20))):
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
    assert max(sources["train"]) < 50_000 <= min(sources["test"])
