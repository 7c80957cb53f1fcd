"""The proof of a tower on one of transformers' own in memory, and on the same gone astray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as hf

from bitseam.errors import ModelError
from bitseam.models.vision.proof import _check_apart, _noise, _place, _Trace, _traced, prove_tower
from bitseam.models.vision.tower import Cut, PatchTower
from bitseam.models.weights import Loaded

SIDE = 32
LAYER = "layers.0"
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}


def vit(**settings: Any) -> Any:
    torch.manual_seed(0)
    return hf.ViTModel(hf.ViTConfig(**SIZES, image_size=SIDE, patch_size=8, **settings))


def prove(model: Any, layer: int = -1, side: int = SIDE, merge: int = 2, missing: Any = ()) -> PatchTower:
    return prove_tower(Loaded(model, frozenset(missing)), layer, side, merge)


def changed(model: Any, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The model, whose part gives something else."""

    def hook(_: Any, given: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    model.get_submodule(part).register_forward_hook(hook)
    return model


def test_a_vit_is_cut_behind_its_class_token_and_normed() -> None:
    model = vit().train()
    tower = prove(model)
    assert not model.training
    assert tower.cut == Cut(side=4, first=1, width=8, norm="layernorm", end="layernorm")
    assert (tower.tokens, tower.width, tower.hidden_layer, tower.merge) == (4, 32, -1, 2)
    assert prove(vit(), layer=0).cut == replace(tower.cut, end="embeddings.dropout")
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        due = model(pixel_values=pixels).last_hidden_state[:, 1:]
        torch.testing.assert_close(PatchTower(model, -1, 1, tower.cut)(pixels), due)


def test_another_size_is_interpolated_or_refused() -> None:
    assert prove(vit(), side=64).cut == Cut(8, 1, 8, "layernorm", ("interpolate_pos_encoding",), end="layernorm")
    with pytest.raises(ModelError, match=r"^client.image_size 40 must be a multiple of patch size x merge = 16$"):
        prove(vit(), side=40)
    assert prove(vit(), side=40, merge=1).cut.side == 5
    fixed = vit()
    fixed.forward = lambda pixel_values, output_hidden_states=False: hf.ViTModel.forward(
        fixed, pixel_values, output_hidden_states=output_hidden_states
    )
    with pytest.raises(ModelError, match=r"^client.image_size is 64, and this tower is made for 32 and cannot take an"):
        prove(fixed, side=64)


def test_what_cannot_go_through_is_said() -> None:
    def broken(pixel_values: Any, output_hidden_states: bool = False) -> None:
        raise ValueError("of\nits own")

    model = vit()
    model.forward = broken
    with pytest.raises(ModelError, match=r"cut: a picture of 32 x 32 pixels cannot go through: of its own$"):
        prove(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_gone_and_norms_are_seen() -> None:
    model = vit().eval()
    model(pixel_values=_noise(SIDE), output_hidden_states=True)  # puts in hooks of transformers' own
    before = sum(len(module._forward_hooks) for module in model.modules())
    trace = _traced(model, _noise(SIDE), Cut(0, 0, 0, ""), SIDE)
    assert len(trace.states) == 3
    assert trace.final.shape == (2, 17, 8)
    assert not trace.final.requires_grad
    names = [name for name, _, _ in trace.norms]
    assert names[-1] == "layernorm"
    assert len(names) == 5  # two of each layer, and the last
    assert sum(len(module._forward_hooks) for module in model.modules()) == before


@pytest.mark.parametrize("layer", [-4, 3])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    with pytest.raises(ModelError, match=f"client.hidden_layer {layer}: this tower has 2 layers"):
        prove(vit(), layer=layer)


def test_patches_in_another_order_are_refused() -> None:
    with pytest.raises(ModelError, match="its tokens are not its patches of pixels, row by row"):
        prove(changed(vit(), "embeddings.patch_embeddings", lambda x: x.flip(1)))
    turned = changed(
        vit(), "embeddings.patch_embeddings", lambda x: x.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
    )
    with pytest.raises(ModelError, match="row by row"):
        prove(turned)


def test_patches_that_see_each_other_are_refused() -> None:
    with pytest.raises(ModelError, match="row by row"):
        prove(changed(vit(), "embeddings.patch_embeddings", lambda x: x + 0.5 * x.roll(1, 1)))


def test_pictures_that_mix_are_refused() -> None:
    mixed = changed(vit(), LAYER, lambda x: x + x.mean(0))
    with pytest.raises(ModelError, match=r"other features alone than beside another, by \S+ of their deviation"):
        prove(mixed)


def test_features_left_to_chance_are_refused() -> None:
    with pytest.raises(ModelError, match="other features alone than beside another"):
        prove(changed(vit(), LAYER, lambda x: x + torch.randn_like(x)))
    with pytest.raises(ModelError, match="its final norm, layernorm, mixes tokens or pictures"):
        prove(changed(vit(), "layernorm", lambda x: x + torch.randn_like(x)), layer=0)


def test_features_that_are_no_numbers_are_refused() -> None:
    tower = prove(vit())
    tower.model.layernorm.weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"become features of shape \[2, 4, 32\], or not finite"):
        _check_apart(tower, _noise(SIDE))


def test_what_features_hang_on_must_be_there_and_a_pooler_need_not() -> None:
    prove(vit(), missing=["pooler.dense.weight", "no.such.name"])
    with pytest.raises(ModelError, match=r"^tensors are missing in its files: layernorm.weight$"):
        prove(vit(), missing=["pooler.dense.weight", "layernorm.weight"])
    model = vit()
    model.register_buffer("table", torch.zeros(3))
    with pytest.raises(ModelError, match=r"^tensors are missing in its files: table$"):
        prove(model, missing=["table"])


# States of stages: fewer tokens in later layers, as maps or told to be


def place(states: list[torch.Tensor], layer: int, merge: int = 1, maps: Any = None, side: int = SIDE) -> Cut:
    model = hf.ViTModel(hf.ViTConfig(**SIZES, image_size=side, patch_size=4))
    trace = _Trace(tuple(states), states[-1], [], maps)
    return _place(model, _noise(side), Cut(0, 0, 0, ""), trace, layer, merge)


def test_maps_of_stages_are_squares() -> None:
    states = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4), torch.randn(2, 9, 1, 1)]
    assert place(states, 0) == Cut(8, 0, 4, "")
    assert place(states, 1, merge=2) == Cut(4, 0, 6, "")
    assert place(states, 2) == Cut(1, 0, 9, "")
    with pytest.raises(ModelError, match=r"does not divide into the 4 x 4 patches of hidden layer 1 \(merge 3\).* 96$"):
        place(states, 1, merge=3)
    with pytest.raises(
        ModelError, match=r"client.image_size 40 does not divide into the 4 x 4 patches of hidden layer"
    ):
        place([torch.randn(2, 4, 8, 8), states[1]], 1, side=40)
    for shape in ((2, 6, 4, 3), (2, 4, 4, 4), (2, 6)):
        with pytest.raises(ModelError, match=rf"its hidden state 1 is of shape \[{', '.join(map(str, shape[1:]))}\]"):
            place([states[0], torch.randn(shape)], 1)


def test_tokens_of_stages_are_squares_where_maps_tell() -> None:
    maps = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)]
    states = [maps[0], maps[1].flatten(2).mT]
    assert place(states, 1, merge=2, maps=tuple(maps)) == Cut(4, 0, 6, "")
    for told in (None, (maps[0], maps[1].mT), (maps[0], torch.randn(2, 6, 4, 4))):
        with pytest.raises(ModelError, match="the tokens of its hidden state 1 cannot be told to be a square in rows"):
            place(states, 1, maps=told)
    with pytest.raises(ModelError, match="cannot be told"):
        place([maps[0], torch.randn(2, 15, 6)], 1, maps=(maps[0], torch.randn(2, 6, 3, 5)))
