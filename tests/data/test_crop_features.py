"""Crops in a data set: each distinct photograph is encoded and kept once, in however many images it is a crop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Tiny, make_recipe
from PIL import Image
from test_rows import picture

from bitseam.data import features, inspection
from bitseam.data.features import LiveFeatures, StoredFeatures
from bitseam.data.images import open_crops
from bitseam.data.inspection import contents_of, split_content
from bitseam.data.memory import Memory
from bitseam.data.survey import survey
from bitseam.errors import DataError
from bitseam.models.vision.half import VisionHalf, load_vision_half

pytestmark = pytest.mark.usefixtures("cache")


def vision(tiny: Tiny, crops: int) -> VisionHalf:
    return load_vision_half(make_recipe(tiny, client__crops=crops).client, 32)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return [picture(tmp_path / f"{i}.png", i) for i in range(5)]


def mosaic(path: Path, photos: Sequence[Path]) -> Path:
    tiles = [np.asarray(Image.open(photo)) for photo in photos]
    Image.fromarray(np.block([[[tiles[0]], [tiles[1]]], [[tiles[2]], [tiles[3]]]])).save(path)
    return path


def stored(half: VisionHalf, images: Sequence[Path], cache: Path) -> StoredFeatures:
    contents = contents_of(images, Memory(cache / "checked.sqlite"), half.crops)
    return StoredFeatures(half, contents, cache / "features")


def by_crop(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (1, 16, Dv) of 2 x 2 crops -> (4, 4, Dv)."""
    return tokens.reshape(2, 2, 2, 2, -1).transpose(1, 2).reshape(4, 4, -1)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures that each pass of a tower encodes."""
    seen: list[int] = []
    crop_pixels = VisionHalf.crop_pixels

    def counted(self: VisionHalf, crops: Sequence[Image.Image]) -> torch.Tensor:
        seen.append(len(crops))
        return crop_pixels(self, crops)

    monkeypatch.setattr(VisionHalf, "crop_pixels", counted)
    return seen


def test_mosaics_of_the_same_photographs_cost_nothing_more(
    tiny: Tiny, photos: list[Path], tmp_path: Path, cache: Path, encoded: list[int]
) -> None:
    alone = stored(vision(tiny, 1), photos[:3], cache)
    assert encoded == [3]
    orders = [(0, 1, 2, 3), (3, 2, 1, 0), (4, 4, 0, 1), (2, 2, 2, 2)]
    images = [
        mosaic(tmp_path / f"{i}.png", [photos[place] for place in order]) for i, order in enumerate(orders, start=100)
    ]
    half = vision(tiny, 2)
    together = stored(half, images, cache)
    assert encoded == [3, 2]  # the two photographs that are new
    assert len(list((cache / "features").iterdir())) == 1  # it is the same tower
    for image, order in zip(images[1:], orders[1:], strict=True):
        tokens = by_crop(together.of([image]))
        for crop, place in zip(tokens, order, strict=True):
            if place < 3:
                assert torch.equal(crop, alone.of([photos[place]])[0])
    assert encoded == [3, 2]
    stored(half, images, cache)
    assert encoded == [3, 2]


def test_stored_features_of_crops_are_the_live_ones_also_from_workers(
    tiny: Tiny, photos: list[Path], tmp_path: Path, cache: Path
) -> None:
    half = vision(tiny, 2)
    images = [mosaic(tmp_path / f"{i}.png", photos[i - 100 :][:4]) for i in (100, 101)] + [photos[0]]
    live = LiveFeatures(half).of(images)
    assert live.shape == (3, half.tokens, half.tower.width)
    torch.testing.assert_close(stored(half, images, cache).of(images), live, rtol=2e-3, atol=2e-3)
    with closing(LiveFeatures(half, workers=1)) as ahead:
        ahead.expect([tuple(images)])
        assert torch.equal(ahead.of(images), live)


def test_a_photograph_is_known_in_any_file_and_by_its_shape_too(photos: list[Path], tmp_path: Path) -> None:
    with Image.open(photos[0]) as image:
        image.save(tmp_path / "same.bmp")
        reshaped = np.asarray(image).reshape(50, 60, 3)
    Image.fromarray(reshaped).save(tmp_path / "other.png")
    images = [photos[0], tmp_path / "same.bmp", tmp_path / "other.png"]
    first, same, other = contents_of(images, Memory(tmp_path / "known.sqlite")).values()
    assert first == same != other


def test_a_photograph_that_changes_after_it_was_checked_is_not_kept(
    tiny: Tiny, photos: list[Path], tmp_path: Path, cache: Path
) -> None:
    image = mosaic(tmp_path / "mosaic.png", photos[:4])
    contents = contents_of([image], Memory(tmp_path / "known.sqlite"), 2)
    mosaic(image, photos[3::-1])  # the same crops at other places
    with pytest.raises(DataError, match=r"mosaic\.png: the file was changed after it was checked"):
        StoredFeatures(vision(tiny, 2), contents, cache / "features")


def test_an_image_that_is_too_small_is_named_with_its_file(tiny: Tiny, tmp_path: Path) -> None:
    small = tmp_path / "small.png"
    Image.new("RGB", (40, 1)).save(small)
    said = r"small\.png: 40 x 1 pixels cannot be cut into 2 x 2 crops \(client\.crops\)"
    with pytest.raises(DataError, match=said):
        open_crops(small, 2)
    with pytest.raises(DataError, match=said):
        LiveFeatures(vision(tiny, 2)).of([small])
    row = {"image": "small.png", "question": "is this a cat ?", "answer": "yes"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    recipe = make_recipe(tiny, data__train=str(tmp_path / "rows.jsonl"), client__crops=2, train__batch=1)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*" + said):
        survey(recipe, None).settle("refuse")
    assert survey(make_recipe(tiny, data__train=recipe.data.train, train__batch=1), None).bad == []


def test_images_are_looked_at_again_only_where_they_are_cut_otherwise(
    tiny: Tiny, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[int] = []

    def counted(path: Path, crops: int) -> list[Image.Image]:
        cut.append(crops)
        return open_crops(path, crops)

    monkeypatch.setattr(inspection, "open_crops", counted)
    rows = [{"image": path.name, "question": "is this a cat ?", "answer": "yes"} for path in photos[:2]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for crops in (1, 2, 1, 2):
        recipe = make_recipe(tiny, data__train=str(tmp_path / "rows.jsonl"), client__crops=crops)
        contents = survey(recipe, None).contents
        assert found.setdefault(crops, contents) == contents
    assert cut == [1, 1, 2, 2]
    for image in photos[:2]:
        assert split_content(found[1][image]) == [found[1][image]]
        assert split_content(found[2][image]) == [inspection.content_of(crop) for crop in open_crops(image, 2)]


def test_an_image_is_opened_once_for_all_its_crops(
    tiny: Tiny, photos: list[Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def counted(path: Path, crops: int) -> list[Image.Image]:
        opened.append(path)
        return open_crops(path, crops)

    image, half = mosaic(tmp_path / "mosaic.png", photos[:4]), vision(tiny, 2)
    monkeypatch.setattr(features, "open_crops", counted)
    stored(half, [image], cache)
    assert opened == [image]
