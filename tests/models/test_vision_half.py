"""The vision half: what it says of itself, what of it goes to another process, and what trains."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import Tiny, make_recipe
from PIL import Image
from torch import nn

from bitseam.errors import ModelError
from bitseam.models.vision.half import VisionHalf, _vision, half_from_llava, half_from_tower, load_vision_half
from bitseam.models.vision.llava import LlavaTower
from bitseam.models.vision.tower import PatchTower


def half_of(tiny: Tiny, **changes: Any) -> VisionHalf:
    return load_vision_half(make_recipe(tiny, **{f"client__{k}": v for k, v in changes.items()}).client, 32)


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (70, 60), colour) for colour in ("red", "blue")]


def test_what_decides_features_is_told(tiny: Tiny) -> None:
    half = half_of(tiny)
    assert isinstance(half.tower, PatchTower)
    assert half.tokens == half.tower.tokens == 4
    facts = {"side": 4, "first": 1, "width": 24, "norm": "layernorm", "arguments": (), "ordered": False}
    facts["end"] = "encoder.layer.2"  # the layer after the one that is taken
    assert half.facts == facts
    told = half.settings()
    assert told["tower"] == {"hidden_layer": -2, "merge": 2, "tokens": 4, "width": 96}
    assert told["facts"] == facts
    assert told["framing"] == half.framing
    assert told["processor"] == half.processor.to_dict()
    assert told["model"]["model_type"] == "dinov2"
    assert not {"_name_or_path", "transformers_version"} & told["model"].keys()
    assert half.tower.model.config.to_dict()["transformers_version"]  # left there


def test_preprocessing_is_a_half_without_weights(tiny: Tiny) -> None:
    half = half_of(tiny)
    light = half.preprocessing()
    assert not list(light.modules())[1:]
    assert len(pickle.dumps(light)) < 100_000
    assert torch.equal(light.pixels(pictures()), half.pixels(pictures()))
    assert half.pixels(pictures()).shape == (2, 3, 56, 56)
    assert list(half.parameters())


@pytest.mark.parametrize("tuned", [False, True])
def test_features_have_gradients_where_the_tower_is_tuned(tiny: Tiny, tuned: bool) -> None:
    half = half_of(tiny, tune_vision=tuned)
    assert half.training
    assert half.tower.training == tuned
    assert all(p.requires_grad == tuned for p in half.tower.parameters())
    assert all(p.requires_grad for p in half.connector.parameters())
    assert half.train() is half
    pixels = half.pixels(pictures())
    assert half.features(pixels).requires_grad == tuned
    with torch.no_grad():
        assert not half.features(pixels).requires_grad
    assert not half.train(False).tower.training
    assert half(half.features(pixels)).shape == (2, 4, 32)


def test_batch_norms_stay_in_evaluation(tiny: Tiny) -> None:
    half = half_of(tiny, tune_vision=True)
    half.tower.norm = nn.BatchNorm2d(3)
    half.tower.other = nn.LayerNorm(3)
    half.train()
    assert not half.tower.norm.training
    assert half.tower.other.training


def test_a_fresh_connector_is_fitted_to_features(tiny: Tiny) -> None:
    half = half_of(tiny, connector_hidden=20)
    features = torch.randn(5, 4, 96) * 7 + 3
    half.calibrate(features)
    white = half.connector[0](features).view(-1, 24)
    assert white.mean(0).abs().max() < 1e-4
    assert white.std(0).mean() == pytest.approx(1, abs=0.05)
    assert half.connector[1].out_features == 20
    assert half_of(tiny).connector[1].out_features == 32


def test_a_tower_that_was_proved_before_is_put_together_again(tiny: Tiny) -> None:
    half = half_of(tiny)
    settings = make_recipe(tiny).client
    pixels = half.pixels(pictures())
    for processor, framing in ((half.processor, half.framing), (None, {})):
        again = half_from_tower(half.tower.model, settings, 32, processor, half.facts)
        assert again.framing == framing
        assert again.processor is processor
        assert torch.equal(again.features(pixels), half.features(pixels))
    scaled = half_from_tower(half.tower.model, replace(settings, image_size=28), 32, half.processor, half.facts)
    assert scaled.pixels(pictures()).shape == (2, 3, 28, 28)


def test_a_llava_that_was_proved_before_is_put_together_again(tiny: Tiny) -> None:
    half = half_of(tiny, checkpoint=tiny.llava)
    assert isinstance(half.tower, LlavaTower)
    assert half.facts == {"tokens": half.tokens} == {"tokens": 4}
    assert half.tower.width == 24
    pixels = half.pixels(pictures())
    features, out = half.features(pixels), half(half.features(pixels))
    assert features.shape == (2, 4, 24)
    llava = half.tower.llava
    for processor in (half.processor, None):
        llava.model.multi_modal_projector = half.connector
        again = half_from_llava(llava, processor, half.facts)
        assert again.connector is half.connector
        assert (again.tower.tokens, again.tower.width) == (4, 24)
        assert again.framing == (half.framing if processor is not None else {})
        assert torch.equal(again(again.features(pixels)), out)
    before = {name: value.clone() for name, value in half.state_dict().items()}
    half.calibrate(features)  # its own connector stays as it is
    assert all(torch.equal(value, before[name]) for name, value in half.state_dict().items())


def test_of_a_pair_the_vision_tower_is_taken() -> None:
    class Pair:
        vision_model, get_text_features = "tower", "text"

    class Other:
        vision_model = "tower"

    other = Other()
    assert _vision(Pair()) == "tower"
    assert _vision(other) is other


def test_faults_name_the_checkpoint_and_its_kind(tiny: Tiny) -> None:
    with pytest.raises(
        ModelError, match=r"^client.checkpoint '\S+' \(dinov2\): client.hidden_layer 9: this tower has 3 "
    ):
        half_of(tiny, hidden_layer=9)
    with pytest.raises(ModelError, match=r"^client.checkpoint '\S+nowhere' cannot be loaded: "):
        half_of(tiny, checkpoint=tiny.vision + "nowhere")
