"""Which ways are tried, which masks are given, and what else decides how rows go through a language model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from conftest import Tiny, load_benchmark, make_recipe
from PIL import Image
from test_layout import images, model_of, text_of
from test_tower_proof import place
from torch import nn

from bitseam.errors import DataError, ModelError
from bitseam.models import proof
from bitseam.models.layout import packed
from bitseam.models.server import ServerModel, Ways
from bitseam.models.trial import Trial
from bitseam.models.vision import framing
from bitseam.models.vision.connector import Whiten
from bitseam.models.vision.half import load_vision_half
from bitseam.models.vision.pictures import upright_rgb
from bitseam.models.vision.proof import _changed, _noise, _traced
from bitseam.models.vision.tower import Cut


def test_the_first_token_of_a_sequence_is_predicted_by_none_wherever_it_stands() -> None:
    layout = packed(text_of([6, 2, 2], [1, 1, 1], [0, 1, 2], [4, 5, 6, 4, 5, 6, 4, 5, 7, 8]), 1)
    assert layout.text.tolist() == [[0] * 6 + [1] * 4, [0, 2, 3, 4, 5, 6, 0, 2, 3, 5]]
    assert layout.previous[1].tolist() == [-1, 1, 2, 3, 4, 5, -1, 1, -1, 4]


@pytest.mark.parametrize(
    ("kinds", "due"),
    [
        ({"": None}, "plain"),
        ({"": "window"}, "window"),
        ({"full": None, "sliding": None}, "plain"),
        ({"full": None, "sliding": "window"}, {"full": "plain", "sliding": "window"}),
    ],
)
def test_masks_are_of_each_kind_of_layers_where_windows_differ(kinds: dict[str, Any], due: Any) -> None:
    asked: list[int] = []
    layout: Any = SimpleNamespace(position=torch.zeros(2, 9), mixed=True)
    layout.attention_mask = lambda dtype, overlay: overlay or "plain"
    model: Any = SimpleNamespace(language=SimpleNamespace(windows=lambda longest: asked.append(longest) or kinds))
    assert ServerModel._masks(model, layout, torch.float32) == due
    assert asked == [9]
    layout.mixed = False
    assert ServerModel._masks(model, layout, torch.float32) is None


def test_the_head_meets_states_that_are_asked_for_and_no_others(tiny: Tiny) -> None:
    half = model_of(tiny).language
    seen: list[Any] = []
    half.base.lm_head.register_forward_hook(lambda _, given, out: seen.append(tuple(given[0].shape)))
    embeds = half.embed(torch.tensor([[3, 4, 5], [6, 7, 8]]))
    places = torch.tensor([[0, 1], [2, 0]])
    half.logits(embeds, places)
    half.logits(embeds, places, everywhere=True)
    assert seen == [(1, 2, 32), (2, 3, 32)]


def test_prompts_that_are_hidden_are_not_taken_to_be_shared(tiny: Tiny) -> None:
    """Their ids are alike here, as nobody knows them, and their embeddings are not."""
    model = model_of(tiny)
    text = text_of([3, 3], [2, 2], [0, 0], [0, 0, 5, 0, 0, 6])
    rows = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (
            model.logits(text, rows, images(text), Ways(way), ids_known=False)  # type: ignore[arg-type]
            for way in ("packed", "alone")
        )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_ways_are_tried_from_the_quickest(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[dict[str, Ways]] = []

    class Last(proof._Found):
        def first(self, every: Any, trials: Any, compare: Any) -> Ways:
            assert len(trials) == 2
            tried.append(dict(every))
            return list(every.values())[-1]

    monkeypatch.setattr(proof, "_Found", Last)
    found = proof.prove(model_of(tiny), make_recipe(tiny))
    rows = [Ways(rows, head) for head in (False, True) for rows in ("packed", "padded", "alone")]  # type: ignore[arg-type]
    assert list(tried[0].values()) == rows
    assert list(tried[0])[1::3] == ["padded rows", "padded rows, all logits"]
    answers: Any = ("together", "alone", "uncached")
    assert tried[1] == {f"answers {way}": Ways("alone", True, way) for way in answers}
    assert found.ways == Ways("alone", True, "uncached")


def test_a_loss_of_a_router_is_refused_before_anything_is_tried(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(tiny)
    model.language.base.config.output_router_logits = True
    monkeypatch.setattr(proof, "Trial", lambda *_: pytest.fail("tried"))
    with pytest.raises(ModelError, match="output_router_logits is true"):
        proof.prove(model, make_recipe(tiny))


def test_the_worst_answer_of_a_trial_counts(tiny: Tiny) -> None:
    trial = Trial(model_of(tiny), (), 0)
    trial.answer(Ways())
    trial._steps[1] = 2 * trial._steps[1]
    assert trial.answer(Ways())["answers"] == pytest.approx(0.5, rel=1e-3)


# Vision


def test_a_dead_channel_is_not_blown_up() -> None:
    whiten = Whiten(1)
    whiten.calibrate(torch.tensor([[-1e-5], [1e-5]]))
    torch.testing.assert_close(whiten.weight, torch.full((1, 1), 1e4) / 0.04**0.5)


def test_a_change_is_measured_by_the_deviation_of_a_state() -> None:
    one = 10 * torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    other = one.clone()
    other[0, 0] += 5e-3
    other[1, 0] += 2e-2
    assert _changed(one, other).tolist() == [False, True]


def test_stages_of_a_swin_tell_their_maps() -> None:
    towers = load_benchmark("tiny_towers")
    tower = towers.TOWERS["swin"]
    trace = _traced(tower.make().eval(), _noise(tower.side), Cut(0, 0, 0, ""), tower.side)
    assert trace.maps is not None
    assert [one.ndim for one in trace.maps] == [4] * len(trace.states)


def test_patches_of_a_map_are_its_places_where_no_size_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "ViTModel", lambda _: SimpleNamespace(config=SimpleNamespace()))
    assert place([torch.randn(2, 4, 8, 8)], 0, merge=2) == Cut(8, 0, 4, "")
    with pytest.raises(ModelError, match=r"client.image_size 32 must be a multiple of patch size x merge = 12"):
        place([torch.randn(2, 4, 8, 8)], 0, merge=3)


def test_a_half_goes_into_evaluation_whole(tiny: Tiny) -> None:
    half = load_vision_half(make_recipe(tiny).client, 32)
    half.eval()
    assert not half.training
    assert not half.connector.training
    half.tower.model = nn.Identity()  # of no configuration
    assert half.settings()["model"] == {}


def test_pictures_without_pixels_are_refused() -> None:
    for size in ((0, 5), (5, 0)):
        with pytest.raises(DataError, match=f"it has {size[0]} x {size[1]} pixels"):
            upright_rgb(Image.new("RGB", size))


def test_numbers_from_zero_within_eight_bits_stay() -> None:
    image = Image.fromarray(np.array([[0, 7, 100]], np.int32))
    assert np.asarray(upright_rgb(image))[0, :, 0].tolist() == [0, 7, 100]


def test_an_edge_may_move_by_pixels_of_the_coarser_view() -> None:
    line = torch.linspace(0, 1, 64)
    own = torch.stack([line.expand(64, 64), line[:, None].expand(64, 64), torch.zeros(64, 64)]).expand(3, -1, -1, -1)
    ours = torch.nn.functional.interpolate(own, size=(32, 32), mode="bilinear", antialias=True)
    most = (own.amax((0, 2, 3)) > 0)[:, None, None] * (1.5 / 32 + 1 / 64)
    assert framing._same_view(own, ours + 0.99 * most)
    assert not framing._same_view(own, ours + 1.01 * most)


def test_a_processor_that_does_not_say_that_it_resizes_does_not() -> None:
    class Processor:
        size = {"shortest_edge": 8}  # noqa: RUF012

        def __call__(self, images: Any, return_tensors: str, **more: Any) -> dict[str, Any]:
            return {"pixel_values": torch.zeros(len(images), 3, 8, 8 if more else 9)}

    with pytest.raises(ModelError, match="not all of one square size"):
        framing.own_framing(Processor())


def test_a_model_whose_rows_hang_on_those_before_is_refused(tiny: Tiny) -> None:
    model, lengths = model_of(tiny), [0]
    model.language.base.config.original_max_position_embeddings = 8

    def stretched(_: Any, given: Any, out: Any) -> Any:
        lengths.append(max(lengths[-1], out.last_hidden_state.shape[1]))
        noise = torch.randn(out.last_hidden_state.shape, generator=torch.Generator().manual_seed(0))
        out.last_hidden_state = out.last_hidden_state + 0.01 * lengths[-1] * noise
        return out

    model.language.base.model.register_forward_hook(stretched)
    with pytest.raises(ModelError, match="what it makes of a row depends on the rows before it"):
        proof.prove(model, make_recipe(tiny), training=False)
