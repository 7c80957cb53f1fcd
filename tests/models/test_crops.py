"""Crops: which pixels each has, in which order their tokens stand, and that each is encoded alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Tiny, make_recipe
from PIL import Image

from bitseam.config import Recipe
from bitseam.errors import DataError, ModelError
from bitseam.models.client import ClientModel
from bitseam.models.vision.half import VisionHalf, load_vision_half
from bitseam.models.vision.pictures import cut_into_crops
from bitseam.runs.checkpoint import Identity, build_client, build_server, save_client, save_server
from bitseam.runs.merge import BitseamModel, merge
from bitseam.text.prompts import Prompter


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mosaic(photos: list[Image.Image]) -> Image.Image:
    """Four photographs of one size, row by row."""
    tiles = [np.asarray(photo) for photo in photos]
    return Image.fromarray(np.block([[[tiles[0]], [tiles[1]]], [[tiles[2]], [tiles[3]]]]))


def cropped(tiny: Tiny, crops: int = 2, **changes: object) -> VisionHalf:
    return load_vision_half(make_recipe(tiny, client__crops=crops, **changes).client, 32)


@pytest.mark.parametrize(
    ("size", "crops", "columns", "rows"),
    [((7, 4), 3, [2, 2, 3], [1, 1, 2]), ((6, 6), 2, [3, 3], [3, 3]), ((5, 9), 4, [1, 1, 1, 2], [2, 2, 2, 3])],
)
def test_every_pixel_is_in_one_crop(size: tuple[int, int], crops: int, columns: list[int], rows: list[int]) -> None:
    image = noise(*size)
    cut = cut_into_crops(image, crops)
    assert [crop.size for crop in cut] == [(width, height) for height in rows for width in columns]
    lines = [np.concatenate([np.asarray(c) for c in cut[i * crops : (i + 1) * crops]], axis=1) for i in range(crops)]
    assert np.array_equal(np.concatenate(lines), np.asarray(image))


def test_an_image_that_is_not_cut_is_its_own_crop() -> None:
    image = noise(1, 1)
    assert cut_into_crops(image, 1) == [image]


@pytest.mark.parametrize("size", [(1, 9), (9, 1)])
def test_an_image_of_fewer_pixels_than_crops_is_refused(tiny: Tiny, size: tuple[int, int]) -> None:
    said = f"{size[0]} x {size[1]} pixels cannot be cut into 2 x 2 crops"
    with pytest.raises(DataError, match=said):
        cropped(tiny).pixels([noise(*size)])


@pytest.mark.parametrize(("crops", "merge"), [(2, 2), (2, 1), (3, 2), (1, 2)])
def test_tokens_stand_row_by_row_over_the_whole_image(tiny: Tiny, crops: int, merge: int) -> None:
    half = cropped(tiny, crops, client__merge=merge)
    side = 4 // merge
    places = torch.arange((crops * side) ** 2).reshape(crops * side, crops * side)
    rows = [line.split(side, dim=1) for line in places.split(side, dim=0)]
    by_crop = torch.stack([block.flatten() for line in rows for block in line])
    assert half.tokens == by_crop.numel()
    joined = half.join(torch.stack([by_crop, by_crop + 1000])[..., None])
    assert torch.equal(joined[..., 0], torch.stack([places.flatten(), places.flatten() + 1000]))


def test_a_crop_has_the_features_of_the_same_photograph_alone(tiny: Tiny) -> None:
    photos = [noise(50, 40, seed) for seed in range(4)]
    alone, half = cropped(tiny, 1), cropped(tiny, 2)
    tokens = half.features(half.pixels([mosaic(photos)])).reshape(
        2, 2, 2, 2, -1
    )  # crop, token down; crop, token across
    crops = tokens.transpose(1, 2).reshape(4, 4, -1)
    assert torch.equal(crops, alone.features(alone.pixels(photos)))  # as many pictures a pass
    for crop, photo in zip(crops, photos, strict=True):
        torch.testing.assert_close(crop[None], alone.features(alone.pixels([photo])), rtol=1e-5, atol=1e-5)


def test_each_crop_is_framed_as_a_picture(tiny: Tiny) -> None:
    """What the processor leaves out of a lying picture, it leaves out of each crop."""
    half, image = cropped(tiny), noise(200, 90)
    boxes = [(0, 0, 100, 45), (100, 0, 200, 45), (0, 45, 100, 90), (100, 45, 200, 90)]
    due = torch.cat([cropped(tiny, 1).pixels([image.crop(box)]) for box in boxes])
    assert torch.equal(half.pixels([image, image]), torch.cat([due, due]))


def test_gradients_of_a_tuned_tower_come_from_every_crop(tiny: Tiny) -> None:
    half = cropped(tiny, client__tune_vision=True).eval()
    pixels = half.pixels([noise(80, 80)]).requires_grad_()
    (half.features(pixels) ** 2).sum().backward()
    assert pixels.grad is not None
    assert bool((pixels.grad.abs().amax((1, 2, 3)) > 0).all())


def test_a_llava_takes_no_crops(tiny: Tiny) -> None:
    settings = replace(make_recipe(tiny).client, checkpoint=tiny.llava, crops=2)
    with pytest.raises(ModelError, match=r"\(llava\): client\.crops is 2, but a LLaVA") as told:
        load_vision_half(settings, 32)
    assert "\n" not in str(told.value)


def trained(recipe: Recipe) -> ClientModel:
    client = build_client(recipe, str)
    client.streams["image"].quantizer.calibrate(torch.randn(9, 32))
    return client.eval()


def test_a_merged_model_cuts_images_as_the_halves_do(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, client__crops=2)
    client, server = trained(recipe), build_server(recipe, str).eval()
    image, text = noise(90, 60), Prompter(recipe.text).batch(["is this a cat ?"], ["yes"])
    pixels = client.vision.pixels([image])
    client.use_asked()
    levels = {name: sent.levels for name, sent in client(client.vision.features(pixels), text).items()}
    due, _ = server.answer_logits(text, levels)
    identity = Identity("ab", 3)
    folders = [
        save_client(client, recipe, identity, tmp_path / "client"),
        save_server(server, recipe, identity, tmp_path / "server"),
    ]
    merge(*folders, tmp_path / "merged", str)
    whole = BitseamModel.from_pretrained(tmp_path / "merged").eval()
    assert whole.client.vision.tokens == client.vision.tokens == 16
    assert torch.equal(whole.client.vision.pixels([image]), pixels)
    torch.testing.assert_close(whole(pixels, text).logits, due, rtol=1e-5, atol=1e-5)
    whole.answer(image, "is this a cat ?", 2)
