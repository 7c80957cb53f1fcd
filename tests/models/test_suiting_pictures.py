"""What `bitseam new` writes about a tower, known without its weights, is what the tower takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import Tiny, load_benchmark

from bitseam.config import Client
from bitseam.errors import ModelError
from bitseam.models.language.loading import embedding_width
from bitseam.models.vision.half import load_vision_half, suiting_pictures

tiny_towers = load_benchmark("tiny_towers")


@pytest.mark.parametrize(
    ("name", "made", "suits"),
    [
        ("dinov2", 56, (56, 2)),
        ("dinov2", 42, (42, 1)),  # three patches along an edge
        ("dinov2", 60, (56, 2)),  # four patches of 14, and four pixels
        ("clip", 56, (56, 2)),  # a configuration of two towers
        ("swin", 64, (64, 1)),  # stages
        ("convnext", 64, (64, 1)),
    ],
)
def test_size_and_merge(name: str, made: int, suits: tuple[int, int], tmp_path: Path) -> None:
    assert suiting(name, made, tmp_path) == suits


@pytest.mark.parametrize("name", tiny_towers.TOWERS)
def test_each_tower_takes_what_suits_it(name: str, tmp_path: Path) -> None:
    suiting(name, tiny_towers.TOWERS[name].side, tmp_path)


def suiting(name: str, made: int, folder: Path) -> tuple[int, int]:
    """What suits a tower whose processor makes pictures of `made` pixels; it loads so."""
    tower = tiny_towers.TOWERS[name]
    torch.manual_seed(0)
    checkpoint = tiny_towers.save((tower.make(), tower.processor(made)), folder)
    suits = suiting_pictures(checkpoint)
    assert suits is not None
    load_vision_half(Client(checkpoint, image_size=suits[0], merge=suits[1]), 8)
    return suits


def test_no_weights_are_read(tiny: Tiny, tmp_path: Path) -> None:
    for name, source in (("vision", tiny.vision), ("language", tiny.language), ("llava", tiny.llava)):
        (tmp_path / name).mkdir()
        for path in Path(source).glob("*.json"):
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    assert suiting_pictures(str(tmp_path / "vision")) == (56, 2)
    assert suiting_pictures(str(tmp_path / "llava")) is None
    assert embedding_width(str(tmp_path / "language")) == embedding_width(str(tmp_path / "llava")) == 32


def test_what_is_neither_is_told(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match=r"^client.checkpoint '.*language': no vision tower that Bitseam can cut"):
        suiting_pictures(tiny.language)
    with pytest.raises(ModelError, match=r"^server.checkpoint '.*vision': it is a dinov2, which transformers has no"):
        embedding_width(tiny.vision)
