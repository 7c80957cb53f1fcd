"""A tower ends at the layer that is taken: the same features and gradients, and nothing behind it runs."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from conftest import Tiny, load_benchmark, make_recipe
from safetensors.torch import load_file
from torch import nn

from bitseam.models.vision.half import VisionHalf, load_vision_half
from bitseam.models.vision.proof import prove_tower
from bitseam.models.vision.tower import set_training
from bitseam.models.weights import Loaded
from bitseam.runs.checkpoint import Identity, build_client, load_client, save_client

towers, tiny_towers = load_benchmark("equality_towers"), load_benchmark("tiny_towers")


def saved(name: str, folder: Path, **settings: Any) -> str:
    torch.manual_seed(0)
    tower = tiny_towers.TOWERS[name]
    model = tower.make()
    for key, value in settings.items():
        setattr(model.config, key, value)
    return tiny_towers.save((type(model)(model.config), tower.processor(tower.side)), folder)


def loaded(tiny: Tiny, layer: int, tune: bool) -> VisionHalf:
    recipe = make_recipe(tiny, client__hidden_layer=layer, client__tune_vision=tune)
    return load_vision_half(recipe.client, 32)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tune", [False, True])
@pytest.mark.parametrize(("layer", "ran"), [(-1, 3), (-2, 2), (1, 1), (-4, 0)])
def test_layers_behind_the_one_that_is_taken_do_not_run(
    tiny: Tiny, pixels: torch.Tensor, layer: int, ran: int, tune: bool
) -> None:
    half = loaded(tiny, layer, tune)
    calls: list[int] = []
    for number, block in enumerate(half.tower.model.encoder.layer):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    found = half.features(pixels)
    assert calls == list(range(ran))
    assert found.requires_grad == tune
    whole = half.tower.model(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
    patches = half.tower.model.layernorm(whole)[:, 1:].reshape(2, 2, 2, 2, 2, 24).transpose(2, 3)
    assert torch.equal(found, patches.reshape(2, 4, 96))
    assert not any(module._forward_pre_hooks for module in half.tower.modules())


def test_gradients_are_those_of_the_whole_forward_pass(tiny: Tiny, pixels: torch.Tensor) -> None:
    half = loaded(tiny, -2, tune=True)
    (half.features(pixels) ** 2).sum().backward()
    found = {name: p.grad.clone() for name, p in half.tower.named_parameters() if p.grad is not None}
    half.tower.zero_grad()
    model = half.tower.model
    state = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    (model.layernorm(state)[:, 1:] ** 2).sum().backward()
    due = {name: p.grad for name, p in half.tower.named_parameters() if p.grad is not None}
    assert found.keys() == due.keys()
    for name in due:
        torch.testing.assert_close(found[name], due[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "siglip", "vit_mae", "dinov3_vit"])
def test_towers_of_many_kinds_end_early(name: str, tmp_path: Path) -> None:
    half = towers.load(saved(name, tmp_path), image_size=tiny_towers.TOWERS[name].side, hidden_layer=-2)
    assert half.tower.cut.end


def test_dropout_of_a_tuned_tower_is_as_in_the_whole_forward_pass(tmp_path: Path, pixels: torch.Tensor) -> None:
    """The embeddings' dropout is given what in evaluation mode is the first state, and in training mode is not."""
    rates = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.1}
    for layer in (0, -2):
        half = towers.load(saved("vit", tmp_path / str(layer), **rates), hidden_layer=layer, tune_vision=True)
        assert half.tower.cut.end
        assert "dropout" not in half.tower.cut.end
        half.train()
        torch.manual_seed(1)
        found = half.features(pixels)
        torch.manual_seed(1)
        state = half.tower.model(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
        assert torch.equal(found, half.tower.model.layernorm(state)[:, 1:])
        assert not torch.equal(found, half.features(pixels))  # dropout is at work


class Mixing(nn.Module):
    """Adds noise in training only, as nothing in evaluation mode shows."""

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return state + torch.randn_like(state) if self.training else state


def test_a_tower_runs_whole_where_no_module_is_given_the_state(tmp_path: Path) -> None:
    """CLIP's last state: its norm is given the class token alone. That features are right, `test_towers` shows."""
    assert towers.load(saved("clip_vision_model", tmp_path), hidden_layer=-1).tower.cut.end == ""


def test_a_module_that_only_training_lets_change_its_input_is_no_end(tmp_path: Path, pixels: torch.Tensor) -> None:
    model = hf.ViTModel.from_pretrained(saved("vit", tmp_path)).eval()
    block = model.layers[1]
    mixing, forward = Mixing(), block.forward
    block.mixing = mixing
    block.forward = lambda *args, **kwargs: mixing(forward(*args, **kwargs))
    tower = prove_tower(Loaded(model, frozenset()), -2, 56, 1)
    assert tower.cut.end == "layers.2"
    set_training(tower, True)
    torch.manual_seed(1)
    found = tower(pixels)
    torch.manual_seed(1)
    state = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(found, model.layernorm(state)[:, 1:])


def test_a_checkpoint_of_a_tuned_tower_has_all_its_layers(tiny: Tiny, tmp_path: Path) -> None:
    recipe = make_recipe(tiny, client__tune_vision=True, client__hidden_layer=1)
    client = build_client(recipe, str)
    with torch.no_grad():
        for parameter in client.vision.tower.parameters():
            parameter.add_(0.01)
    folder = save_client(client, recipe, Identity("ab", 3), tmp_path)
    names = set(load_file(folder / "vision.safetensors"))
    assert any(name.startswith("model.encoder.layer.2.") for name in names)
    again, _, _ = load_client(folder, str)
    for name, parameter in client.vision.tower.state_dict().items():
        assert torch.equal(again.vision.tower.state_dict()[name], parameter), name


def test_what_was_computed_on_the_way_is_freed(tiny: Tiny, pixels: torch.Tensor) -> None:
    """At once, without a search for cycles: on a GPU, a pass may be most of the memory."""
    half = loaded(tiny, -2, tune=False)
    kept: list[weakref.ref[torch.Tensor]] = []
    half.tower.model.encoder.layer[0].register_forward_hook(
        lambda _, __, out: kept.append(weakref.ref(out[0] if isinstance(out, tuple) else out))
    )
    gc.disable()
    try:
        half.features(pixels)
        assert len(kept) == 1
        assert kept[0]() is None
    finally:
        gc.enable()
