"""Vision towers of many kinds as `client.checkpoint`: equal to transformers, or refused in one line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from conftest import load_benchmark
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from bitseam import config
from bitseam.errors import ModelError
from bitseam.models.vision.half import load_vision_half

towers, tiny_towers = load_benchmark("equality_towers"), load_benchmark("tiny_towers")


def refusal(checkpoint: str, **changes: object) -> str:
    with pytest.raises(ModelError) as caught:
        towers.load(checkpoint, **changes)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) - len(checkpoint) < 500
    assert "client.checkpoint" in text
    return text


def saved(name: str, folder: Path) -> str:
    tower = tiny_towers.TOWERS[name]
    torch.manual_seed(0)
    return tiny_towers.save((tower.make(), tower.processor(tower.side)), folder)


def rewrite(checkpoint: str, change: object) -> None:
    """Change the tensors of a checkpoint in place: `change` takes and returns a dictionary of them."""
    path = Path(checkpoint) / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def without(checkpoint: str, end: str) -> None:
    def change(state: dict) -> dict:
        left = {name: tensor for name, tensor in state.items() if not name.endswith(end)}
        assert len(left) == len(state) - 1
        return left

    rewrite(checkpoint, change)


@pytest.mark.parametrize(
    "name",
    [
        *["vit", "deit", "beit", "beit, normed tokens", "dinov2_with_registers", "dinov3_vit", "ijepa", "vit_mae"],
        *["clip", "siglip_vision_model", "aimv2_vision_model", "pixio", "swin", "convnext", "resnet"],
        "dinov3_convnext",
    ],
)
def test_M5_features_are_as_documented(name: str, tmp_path: Path) -> None:
    for row in towers.tower_rows(name, tmp_path):
        assert row["verdict"] == "equal", row


@pytest.mark.parametrize("name", list(tiny_towers.LLAVAS))
def test_M15_llava_towers_are_transformers_own(name: str, tmp_path: Path) -> None:
    for row in towers.llava_rows(name, tmp_path):
        assert row["verdict"] == "equal", row


def test_M5_merged_patches_are_neighbours(tmp_path: Path) -> None:
    checkpoint = saved("dinov3_vit", tmp_path)
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    one, two = (towers.load(checkpoint, merge=merge).features(pixels) for merge in (1, 2))
    grid = one.reshape(2, 4, 4, 24)
    due = torch.cat([grid[:, 0::2, 0::2], grid[:, 0::2, 1::2], grid[:, 1::2, 0::2], grid[:, 1::2, 1::2]], -1)
    assert torch.equal(two, due.reshape(2, 4, 96))


def test_M5_a_norm_that_nobody_can_tell_is_refused(tmp_path: Path) -> None:
    made = tiny_towers.OTHERS["efficientnet"]()
    assert "final norm cannot be told" in refusal(tiny_towers.save(made, tmp_path), image_size=64)


@pytest.mark.parametrize(("name", "side"), [("vit", 28), ("clip", 112), ("siglip", 84), ("deit", 112), ("beit", 28)])
def test_M14_other_sizes_are_interpolated(name: str, side: int, tmp_path: Path) -> None:
    checkpoint = saved(name, tmp_path)
    half = towers.load(checkpoint, image_size=side)
    pixels = half.pixels(towers.pictures())
    assert pixels.shape == (3, 3, side, side)
    model = AutoModel.from_pretrained(checkpoint).eval()
    model = getattr(model, "vision_model", model)
    out = model(pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    tower = tiny_towers.TOWERS[name]
    state = model.get_submodule(tower.norm)(out.hidden_states[-1]) if tower.norm else out.hidden_states[-1]
    torch.testing.assert_close(half.features(pixels), state[:, tower.before :], rtol=1e-4, atol=1e-5)


def test_M14_sizes_that_a_tower_cannot_take_are_named(tmp_path: Path) -> None:
    text = refusal(saved("aimv2_vision_model", tmp_path / "a"), image_size=112)
    assert "client.image_size is 112, and this tower is made for 56" in text
    text = refusal(saved("vit", tmp_path / "b"), image_size=60)
    assert "client.image_size 60 must be a multiple of patch size x merge = 14" in text
    text = refusal(saved("resnet", tmp_path / "c"), image_size=68)
    assert "client.image_size 68 does not divide" in text


@pytest.mark.parametrize("name", [*tiny_towers.OTHERS, *tiny_towers.OTHER_VLMS])
def test_M15_other_models_are_refused(name: str, tmp_path: Path) -> None:
    kind, made = ("tower", tiny_towers.OTHERS) if name in tiny_towers.OTHERS else ("vlm", tiny_towers.OTHER_VLMS)
    for row in towers.refused_rows(kind, name, made[name](), tmp_path):
        assert row["verdict"] == "refused", row
        assert "\n" not in row["reason"]
        assert "no vision tower that Bitseam can cut" in row["reason"] or "image processor" in row["reason"]


def test_M15_a_tower_whose_pictures_mix_is_refused(tmp_path: Path) -> None:
    vision = hf.PixtralVisionModel(hf.PixtralVisionConfig(**tiny_towers.VIT | {"head_dim": 12}))
    assert "no vision tower" in refusal(tiny_towers.save((vision, tiny_towers.square(56)), tmp_path))


def test_M15_tokens_in_another_order_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = saved("vit", tmp_path)
    embed = hf.models.vit.modeling_vit.ViTPatchEmbeddings.forward
    monkeypatch.setattr(
        hf.models.vit.modeling_vit.ViTPatchEmbeddings,
        "forward",
        lambda self, x, **named: embed(self, x.transpose(2, 3), **named),  # column by column
    )
    assert "row by row" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("dinov2", "layer.1.norm1.weight"),
        ("clip", "vision_model.post_layernorm.bias"),
        ("vit", "cls_token"),
        ("resnet", "embedder.embedder.normalization.running_mean"),
    ],
)
def test_M11_a_missing_tensor_is_refused(name: str, end: str, tmp_path: Path) -> None:
    checkpoint = saved(name, tmp_path)
    side = tiny_towers.TOWERS[name].side
    towers.load(checkpoint, image_size=side)
    without(checkpoint, end)
    assert end.removeprefix("vision_model.") in refusal(checkpoint, image_size=side)


def test_M11_what_features_do_not_hang_on_may_be_missing(tmp_path: Path) -> None:
    """A ViT trained as a classifier has no pooler, and the text tower of a CLIP is left out."""
    checkpoint = saved("vit", tmp_path / "a")
    features = towers.load(checkpoint).features(torch.ones(1, 3, 56, 56))
    without(checkpoint, "pooler.dense.weight")
    assert torch.equal(towers.load(checkpoint).features(torch.ones(1, 3, 56, 56)), features)
    checkpoint = saved("clip", tmp_path / "b")
    without(checkpoint, "text_projection.weight")
    towers.load(checkpoint)


def test_M11_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    checkpoint = saved("dinov2", tmp_path)
    rewrite(checkpoint, lambda state: state | {"layernorm.weight": torch.ones(25)})
    text = refusal(checkpoint)
    assert "layernorm.weight is [25] and not [24]" in text


@pytest.mark.parametrize("end", ["linear_1.weight", "layers.1.mlp.fc1.bias", "patch_embedding.weight"])
def test_M11_llava(end: str, tmp_path: Path) -> None:
    checkpoint = tiny_towers.save(tiny_towers.LLAVAS["llava, clip, default"](), tmp_path)
    without(checkpoint, end)
    assert end in refusal(checkpoint)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({}, "cannot be loaded"),
        ({"config.json": "{"}, "cannot be loaded"),
        ({"config.json": json.dumps({"model_type": "openelm"})}, "openelm"),
        ({"config.json": json.dumps({"model_type": "vit"})}, "cannot be loaded"),
        ({"config.json": json.dumps({"model_type": "t5"})}, "no vision tower"),
        ({"config.json": json.dumps({"model_type": "vit"}), "model.safetensors": "x"}, "cannot be loaded"),
    ],
)
def test_M17_unfit_checkpoints_are_one_line(files: dict[str, str], what: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert what in refusal(str(tmp_path))


def test_M17_an_image_processor_that_cannot_be_loaded(tmp_path: Path) -> None:
    checkpoint = saved("dinov3_vit", tmp_path)
    path = tmp_path / "preprocessor_config.json"
    if importlib.util.find_spec("torchvision") is None:
        path.write_text(path.read_text().replace("BitImageProcessor", "DINOv3ViTImageProcessor"))
        assert "preprocessor_config.json, cannot be loaded: it needs torchvision" in refusal(checkpoint)
    path.unlink()
    assert "preprocessor_config.json, cannot be loaded" in refusal(checkpoint)


def test_M17_a_llava_of_another_width(tmp_path: Path) -> None:
    checkpoint = tiny_towers.save(tiny_towers.LLAVAS["llava, clip, default"](), tmp_path)
    with pytest.raises(ModelError, match=r"seam.width is 48, but this LLaVA's is 32"):
        load_vision_half(config.Client(checkpoint=checkpoint), 48)


def test_M17_a_layer_that_is_not_there(tmp_path: Path) -> None:
    assert "client.hidden_layer -5: this tower has 3 layers" in refusal(saved("vit", tmp_path), hidden_layer=-5)
