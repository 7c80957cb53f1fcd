"""Pictures as the tower sees them: the processor's own framing, at its own size and at others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from conftest import load_benchmark
from PIL import Image

from bitseam.errors import ModelError
from bitseam.models.vision.framing import framing

towers, tiny_towers = load_benchmark("equality_towers"), load_benchmark("tiny_towers")


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def pixels(processor: Any, **arguments: Any) -> torch.Tensor:
    return processor(images=towers.pictures(), return_tensors="pt", **arguments)["pixel_values"]


def short(edge: int, crop: int, **more: Any) -> dict[str, Any]:
    return {"size": {"shortest_edge": edge}, "crop_size": square(crop), **more}


@pytest.mark.parametrize(
    ("processor", "side", "due"),
    [
        (hf.BitImageProcessorPil(**short(256, 224)), 224, {}),
        (hf.BitImageProcessorPil(**short(256, 224)), 112, short(128, 112)),
        (hf.BitImageProcessorPil(**short(64, 56)), 98, short(112, 98)),
        (hf.BitImageProcessorPil(**short(224, 224)), 112, short(112, 112)),  # the demo's
        (hf.DeiTImageProcessorPil(size=square(256), crop_size=square(224)), 112, {"size": square(128)}
         | {"crop_size": square(112)}),
        (hf.CLIPImageProcessorPil(), 336, short(336, 336)),
        (hf.SiglipImageProcessorPil(), 56, {"size": square(56)}),
        (hf.ViTImageProcessorPil(), 56, {"size": square(56)}),
        (hf.LevitImageProcessorPil(), 112, short(112, 112)),  # itself 256 / 224 of the size
        (hf.ConvNextImageProcessorPil(size={"shortest_edge": 224}), 112, {"size": {"shortest_edge": 112}}),
        # The shorter edge alone: the middle square.
        (hf.CLIPImageProcessorPil(size={"shortest_edge": 56}, do_center_crop=False), 28,
         short(28, 28, do_center_crop=True)),
        (hf.BitImageProcessorPil(size={"shortest_edge": 56}, do_center_crop=False), 56,
         short(56, 56, do_center_crop=True)),
        (hf.BitImageProcessorPil(crop_size=square(56), do_resize=False), 56, {}),
        (hf.Gemma3ImageProcessorPil(), 56, {"size": square(56)}),
    ],
)  # fmt: skip
def test_M18_framing_is_the_processors_own(processor: Any, side: int, due: dict[str, Any]) -> None:
    found = pixels(processor, **framing(processor, side))
    assert found.shape == (3, 3, side, side)
    assert torch.equal(found, pixels(processor, **due))


@pytest.mark.parametrize(
    ("processor", "side"),
    [
        (hf.BitImageProcessorPil(crop_size=square(56), do_resize=False), 28),  # a crop of what scale?
        (hf.BitImageProcessorPil(do_resize=False, do_center_crop=False), 56),
        (hf.ConvNextImageProcessorPil(size={"shortest_edge": 224}), 448),  # from 384 on, it warps
        (hf.Qwen2VLImageProcessorPil(), 56),
        (hf.PixtralImageProcessorPil(), 56),
        (hf.LlavaNextImageProcessorPil(), 56),
        (hf.Gemma3ImageProcessorPil(do_pan_and_scan=True), 56),
        (hf.Idefics2ImageProcessorPil(), 56),
        (hf.GLPNImageProcessorPil(), 56),
        (hf.VideoMAEImageProcessorPil(), 56),
        (hf.Siglip2ImageProcessorPil(), 56),
    ],
)
def test_M18_what_cannot_be_framed_so_is_refused(processor: Any, side: int) -> None:
    with pytest.raises(ModelError, match=r"\A[^\n]*processor[^\n]*\Z"):
        framing(processor, side)


def test_M18_a_tower_at_its_own_size_sees_what_its_processor_makes(tmp_path: Path) -> None:
    tower = tiny_towers.TOWERS["dinov2"]
    processor = tiny_towers.cropping(56)  # 64, then the middle 56
    checkpoint = tiny_towers.save((tower.make(), processor), tmp_path)
    assert torch.equal(towers.load(checkpoint).pixels(towers.pictures()), pixels(processor))
    half = towers.load(checkpoint, image_size=28)
    assert torch.equal(half.pixels(towers.pictures()), pixels(processor, **short(32, 28)))


def test_M18_the_middle_of_a_picture_is_where_it_was() -> None:
    """A processor that crops an eighth sees the same part at half of the pixels."""
    dot = np.zeros((64, 64, 3), np.uint8)
    dot[:4] = 255  # in what is cropped away
    processor = hf.BitImageProcessorPil(**short(64, 56), resample=0, do_normalize=False)
    found = processor(images=[Image.fromarray(dot)], return_tensors="pt", **framing(processor, 28))["pixel_values"]
    assert float(found.abs().max()) == 0


def test_M18_a_llava_whose_processor_does_not_fit_its_tower_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_towers.save((tiny_towers.llava(), tiny_towers.crop_of_shortest(42)), tmp_path)
    with pytest.raises(ModelError, match=r"client.checkpoint .*42 x 42 pixels cannot go through"):
        towers.load(checkpoint)
