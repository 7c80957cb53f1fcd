"""What a tower's proof tells from states of tokens, and how features are cut: exact, on states made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bitseam.errors import ConfigError, ModelError
from bitseam.models.device import choose_device
from bitseam.models.vision import pictures
from bitseam.models.vision.connector import Whiten, fresh_connector
from bitseam.models.vision.framing import _same_view, _scaled, _sizes
from bitseam.models.vision.pictures import middle, reduction, upright_rgb
from bitseam.models.vision.proof import (
    _arguments,
    _changed,
    _check_depth,
    _each_token,
    _edges,
    _noise,
    _normed,
    _own_width,
    _same,
    _square,
    _Trace,
    check_takes_images,
)
from bitseam.models.vision.tower import Cut, PatchTower, as_tokens, extras
from bitseam.models.weights import some


def tokens(moved: list[bool]) -> torch.Tensor:
    """(2, T, 3): tokens that differ between two pictures, and that do not."""
    one = torch.randn(len(moved), 3, generator=torch.Generator().manual_seed(0))
    return torch.stack([one, one + torch.tensor(moved)[:, None]])


def test_the_square_is_where_tokens_change_with_the_picture() -> None:
    assert _square(tokens([False, *[True] * 9, False])) == (1, 3)
    assert _square(tokens([True])) == (0, 1)
    assert _square(torch.zeros(2, 5, 4, 4)) == (0, 4)


@pytest.mark.parametrize(
    ("moved", "told"), [([False], "0 of its 1"), ([True] * 3, "3 of its 3"), ([True, False, True, True, True], "4 of")]
)
def test_what_is_no_square_in_a_row_is_refused(moved: list[bool], told: str) -> None:
    with pytest.raises(ModelError, match=f"{told}.* tokens tell of the picture: no square"):
        _square(tokens(moved))


@pytest.mark.parametrize("shape", [(2, 9), (3, 9, 3), (2, 5, 4, 3)])
def test_what_are_no_tokens_of_two_pictures_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="no tokens of each"):
        _square(torch.randn(shape))


def test_a_token_has_changed_by_more_than_rounding() -> None:
    one = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    step = 1e-3 * float(one.std())
    other = one.clone()
    other[1, 7] += 1.1 * step
    other[2, 7] -= 0.9 * step
    assert _changed(one, other).tolist() == _changed(other, one).tolist() == [False, True, False]


def test_same_is_of_shape_and_bits() -> None:
    one = torch.zeros(2, 1)
    assert _same(one, torch.zeros(2, 1))
    assert not _same(one, torch.zeros(2))
    assert not _same(one, torch.full((2, 1), 1e-30))


def test_edges_are_what_the_configuration_tells() -> None:
    cfg = SimpleNamespace(image_size=[3, 4], patch_size=5, other=None, tuple=(6, 7))
    assert [_edges(cfg, name) for name in ("image_size", "patch_size", "other", "tuple", "none")] == [
        *([3, 4], [5], [], [6, 7], []),
    ]


@pytest.mark.parametrize(("layer", "fits"), [(-3, True), (2, True), (-4, False), (3, False)])
def test_layers_that_are_there(layer: int, fits: bool) -> None:
    if fits:
        _check_depth(layer, 3)
    else:
        with pytest.raises(ModelError, match=f"client.hidden_layer {layer}: this tower has 2 layers"):
            _check_depth(layer, 3)


def test_noise_is_two_pictures_and_the_same_each_time() -> None:
    assert _noise(5).shape == (2, 3, 5, 5)
    assert torch.equal(_noise(5), _noise(5))


def takes(forward: Any, **settings: Any) -> Any:
    return SimpleNamespace(forward=forward, config=SimpleNamespace(**settings))


def test_models_that_take_pictures_alone() -> None:
    check_takes_images(takes(lambda pixel_values, mask=None, *rest, **more: None))
    check_takes_images(takes(lambda pixel_values=None: None))
    for forward in (lambda input_ids=None, pixel_values=None: None, lambda values: None):
        with pytest.raises(ModelError, match="does not take images alone"):
            check_takes_images(takes(forward))
    with pytest.raises(ModelError, match="it wants boxes, labels besides pixels"):
        check_takes_images(takes(lambda pixel_values, boxes, labels, size=3: None))


def test_arguments_of_the_forward_pass() -> None:
    def plain(pixel_values: Any) -> None: ...

    def resizing(pixel_values: Any, interpolate_pos_encoding: bool = False) -> None: ...

    def masking(pixel_values: Any, noise: Any = None, interpolate_pos_encoding: bool = False) -> None: ...

    assert _arguments(takes(plain, image_size=8), 16) == Cut(0, 0, 0, "")
    assert _arguments(takes(resizing, image_size=16), 16) == Cut(0, 0, 0, "")
    assert _arguments(takes(resizing, image_size=[16, 8]), 16).arguments == ("interpolate_pos_encoding",)
    model = takes(masking, image_size=8, patch_size=4, mask_ratio=0.75)
    assert _arguments(model, 16) == Cut(4, 0, 0, "", ("interpolate_pos_encoding",), ordered=True)
    assert model.config.mask_ratio == 0.0
    assert _arguments(takes(masking), 16) == Cut(16, 0, 0, "", (), ordered=True)


class Normed(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.norm, self.other = nn.LayerNorm(width), nn.LayerNorm(width)


def test_the_final_norm_is_between_the_last_state_and_the_output() -> None:
    model, last = Normed(), torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    cut, final = Cut(2, 1, 3, ""), 3 * last
    states = (last * 2, last)

    def found(norms: list[Any], final: torch.Tensor = final, layer: int = 0, cut: Cut = cut) -> str:
        return _normed(model, cut, _Trace(states, final, norms, None), layer).norm

    assert found([("norm", last, final)]) == "norm"
    assert found([("norm", last, final), ("other", last, last)]) == "norm"
    assert found([("norm", last, final)], layer=-1) == "norm"
    assert found([("other", torch.cat([last, last], 1), final)]) == "other"  # of more tokens, of which these are last
    assert found([("norm", states[0], last)], final=last) == "norm"  # the hidden state is taken after the norm
    assert found([("norm", states[0], last)], final=last, layer=-1) == ""
    assert found([("norm", states[0], last)], final=last, layer=1) == ""
    assert found([("norm", last[:, 0], final[:, 0])], final=last) == "norm"  # of the class token alone
    assert found([("norm", last, final), ("other", last[:, 0], final[:, 0])]) == "norm"
    assert found([], final=last) == ""
    assert found([("norm", last, final)], cut=Cut(2, 1, 4, "")) == ""  # of another width
    with pytest.raises(ModelError, match="final norm cannot be told"):
        found([("norm", states[0], final)])


def test_a_norm_that_mixes_is_refused() -> None:
    state = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert _each_token(nn.LayerNorm(3), state)

    class Mixing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean((0, 1))

    assert not _each_token(Mixing(), state)
    assert _own_width(Normed(7), "norm") == 7


def test_maps_are_tokens_row_by_row() -> None:
    state = torch.arange(24).view(1, 4, 2, 3)
    assert as_tokens(state).shape == (1, 6, 4)
    assert as_tokens(state)[0, 4].tolist() == state[0, :, 1, 1].tolist()
    assert torch.equal(as_tokens(state[0]), state[0])


def test_extras_of_a_forward_pass() -> None:
    cpu = torch.device("cpu")
    assert extras(Cut(2, 0, 3, ""), 5, cpu) == {}
    named = extras(Cut(2, 0, 3, "", ("resize",), ordered=True), 5, cpu)
    assert named["resize"] is True
    assert named["noise"].tolist() == [[0, 1, 2, 3]] * 5


class Told(nn.Module):
    """Gives its tokens as hidden states."""

    def __init__(self, states: list[torch.Tensor]) -> None:
        super().__init__()
        self.states, self.scale = states, nn.LayerNorm(2, elementwise_affine=False)
        self.given: dict[str, Any] = {}

    def forward(self, **given: Any) -> Any:
        self.given = given
        return SimpleNamespace(hidden_states=self.states)


def test_neighbours_are_merged_row_by_row_behind_the_first_tokens() -> None:
    state = torch.arange(3 * 19 * 2, dtype=torch.float32).view(3, 19, 2)  # a class token, 4 x 4 patches, two more
    model = Told([torch.zeros(3, 19, 2), state])
    tower = PatchTower(model, 1, 2, Cut(4, 1, 2, ""))
    assert (tower.tokens, tower.width) == (4, 8)
    features = tower(torch.zeros(3, 3, 8, 8))
    assert model.given["output_hidden_states"] is True
    patch = state[:, 1:17].view(3, 4, 4, 2)
    due = torch.stack([patch[:, y : y + 2, x : x + 2].reshape(3, 8) for y in (0, 2) for x in (0, 2)], 1)
    assert torch.equal(features, due)
    normed = PatchTower(model, 1, 1, Cut(4, 1, 2, "scale"))(torch.zeros(3, 3, 8, 8))
    torch.testing.assert_close(normed, model.scale(state[:, 1:17]))


def test_whitening_by_hand() -> None:
    whiten = Whiten(2)
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0], [1.0, 9.0], [3.0, 9.0]])  # no correlation; deviations 1 and 2
    whiten.calibrate(x.view(2, 4))  # two patches a token
    assert whiten.mean.tolist() == [2.0, 7.0]
    torch.testing.assert_close(whiten.weight, torch.diag(torch.tensor([1.0, 0.5])) / 1.03**0.5)
    out = whiten(x.view(2, 4))
    assert out.shape == (2, 4)
    torch.testing.assert_close(out.view(4, 2), (x - whiten.mean) @ whiten.weight)


def test_a_fresh_connector_has_two_layers() -> None:
    whiten, first, act, second = fresh_connector(3, 2, 5, 7)
    assert len(whiten.mean) == 3
    assert (first.in_features, first.out_features, second.in_features, second.out_features) == (12, 5, 5, 7)
    assert type(act) is nn.GELU


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(ConfigError, match="sees no GPU here"):
            choose_device("cuda")


def test_a_few_names_and_how_many_more() -> None:
    assert some([]) == ""
    assert some(["c", "a", "b"]) == "a, b, c"
    assert some(["d", "c", "a", "b", "e"]) == "a, b, c and 2 more"


# Pictures


@pytest.mark.parametrize(
    ("size", "factor"), [((10, 10), 1), ((10, 11), 2), ((20, 20), 2), ((21, 20), 3), ((200, 1), 2)]
)
def test_by_how_much_a_picture_is_reduced(size: tuple[int, int], factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_PIXELS", 100)
    assert reduction(*size) == factor


def test_how_large_pictures_may_be() -> None:
    assert reduction(2**13, 2**12) == 1
    assert reduction(2**13, 2**12 + 1) == 2


def test_the_middle_of_what_is_long_keeps_its_middle() -> None:
    processor = SimpleNamespace(size={"shortest_edge": 4}, do_center_crop=True)
    image = Image.fromarray(np.tile(np.arange(251, dtype=np.uint8), (10, 1)))
    cut = middle(image, processor, {})
    assert cut.size == (81, 10)
    assert np.asarray(cut)[0].tolist() == list(range(85, 166))
    turned = middle(image.transpose(Image.Transpose.ROTATE_90), processor, {})
    assert turned.size == (10, 81)
    for fits in (image.crop((0, 0, 80, 10)), image.crop((0, 0, 10, 10))):
        assert middle(fits, processor, {}) is fits
    assert middle(image, processor, {"size": {"height": 4, "width": 4}}) is image
    assert middle(image, SimpleNamespace(size={"shortest_edge": 4}), {}) is image
    assert middle(image, SimpleNamespace(), {"size": {"shortest_edge": 4}, "do_center_crop": True}).size == (81, 10)


def test_grey_of_numbers_spans_black_to_white() -> None:
    def levels(numbers: Any, kind: Any) -> list[int]:
        image = upright_rgb(Image.fromarray(np.array([numbers], kind)))
        assert image.mode == "RGB"
        return [pixel[0] for pixel in np.asarray(image)[0].tolist()]

    assert levels([0, 7, 255], np.int32) == [0, 7, 255]  # as they are
    assert levels([0, 100, 300], np.int32) == [0, 85, 255]
    assert levels([-100, 0, 155], np.int32) == [0, 100, 255]
    assert levels([300, 300], np.int32) == [255, 255]
    assert levels([-300, -300], np.int32) == [0, 0]
    assert levels([0.0, 0.25, 1.0], np.float32) == [0, 64, 255]
    assert levels([0.0, 0.0], np.float32) == [0, 0]
    assert levels([2.0, 2.0], np.float32) == [255, 255]
    assert levels([1.0, np.inf, -np.inf, np.nan, 3.0], np.float32) == [0, 255, 0, 0, 255]


def test_what_is_transparent_lies_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (10, 20, 30, 0))
    assert np.asarray(upright_rgb(image))[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_a_plain_picture_stays_the_same_object_and_loses_what_is_told_beside() -> None:
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    assert upright_rgb(image) is image
    image.info["comment"] = "x"
    bare = upright_rgb(image)
    assert bare is not image
    assert bare.info == {}
    assert bare.tobytes() == image.tobytes()


# Framing


def test_sizes_are_scaled_and_never_nothing() -> None:
    assert _scaled({"height": 10, "width": 3}, 0.5) == {"height": 5, "width": 2}
    assert _scaled({"height": 10, "width": 1}, 0.1) == {"height": 1, "width": 1}
    processor = SimpleNamespace(size={"height": 3}, other=5)
    assert _sizes(processor, {}, "size") == {"height": 3}
    assert _sizes(processor, {"size": {"width": 4}}, "size") == {"width": 4}
    assert _sizes(processor, {}, "other") == _sizes(processor, {}, "none") == {}


def test_views_are_the_same_but_for_pixels_at_the_edges() -> None:
    line = torch.linspace(0, 1, 64)
    slopes = torch.stack([line.expand(64, 64), line[:, None].expand(64, 64), torch.zeros(64, 64)]).expand(3, -1, -1, -1)
    assert _same_view(slopes, slopes.clone())
    assert _same_view(slopes, torch.nn.functional.interpolate(slopes, size=(32, 32), mode="bilinear", antialias=True))
    most = (slopes > 0) * (1.5 / 64 + 1 / 64)  # of each channel's span; the third has none
    assert _same_view(slopes, slopes + 0.99 * most)
    assert not _same_view(slopes, slopes + 1.01 * most)
    assert not _same_view(slopes, slopes - 1.01 * most)
    assert not _same_view(slopes, slopes + 1e-5 * (torch.arange(3) == 2)[:, None, None])
    assert not _same_view(slopes, slopes * 0.9)
    edge = slopes.clone()
    edge[..., :8, :] += 1
    assert _same_view(slopes, edge)
    edge[..., 8, 30] += 1
    assert not _same_view(slopes, edge)
    assert not _same_view(slopes, slopes.flip(-1))
