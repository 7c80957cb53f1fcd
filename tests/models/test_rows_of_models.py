"""Rows as they are laid out and compared, in exact places and numbers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Tiny, make_recipe
from test_layout import text_of

from bitseam.errors import ModelError
from bitseam.models.language.half import LanguageHalf, _ended, _Ends, _kept, _stop_tokens, load_language_half
from bitseam.models.layout import _first_fit, left_padded, packed, padded
from bitseam.models.proof import _Found, _lengths
from bitseam.models.server import Ways
from bitseam.models.trial import TOLERANCES, _steps_apart, _usual_ids, apart

# Two questions that share two tokens and image 1, then one about image 0 with nothing before its image.
TEXT = text_of([4, 3, 3], [2, 2, 0], [1, 1, 0], [7, 8, 1, 2, 7, 8, 3, 4, 5, 6])


def test_packed_rows() -> None:
    layout = packed(TEXT, 3)
    assert layout.images.tolist() == [1, 0]
    assert layout.text.tolist() == [[0] * 7 + [1] * 3, [0, 1, 5, 6, 0, 1, 7, 3, 4, 5]]
    assert layout.previous.tolist() == [[0] * 7 + [1] * 3, [-1, 0, 4, 5, -1, 0, 4, 2, 3, 4]]
    assert layout.first.tolist() == [True] * 4 + [False] * 2 + [True] * 4
    assert layout.image_place.tolist() == [[[0] * 3, [1] * 3], [[2, 3, 4], [0, 1, 2]]]
    assert layout.position.tolist() == [[0, 1, 2, 3, 4, 5, 6, 5], [0, 1, 2, 3, 4, 5, 0, 0]]
    assert layout.group.tolist() == [[0] * 8, [1] * 6 + [-1] * 2]
    assert layout.sequence.tolist() == [[-1] * 5 + [0, 0, 1], [-1] * 3 + [2] * 3 + [-1] * 2]
    assert layout.sequences == 3
    assert layout.mixed
    assert layout.padding_mask.tolist() == [[1] * 8, [1] * 6 + [0] * 2]
    assert layout.padding_mask.dtype == torch.int64
    mask = layout.attention_mask(torch.float16)
    assert mask is not None
    assert (mask.shape, mask.dtype) == ((2, 1, 8, 8), torch.float16)
    assert mask.unique().tolist() == [torch.finfo(torch.float16).min, 0]
    due = torch.ones(8, 8).tril().bool()
    due[7, 5:7] = False  # the second question does not see the first
    assert torch.equal(mask[0, 0] == 0, due)


def test_an_overlay_takes_away_what_is_too_far() -> None:
    layout = packed(TEXT, 3)
    mask = layout.attention_mask(torch.float32, lambda batch, head, one, other: one - other < 2)
    assert mask is not None
    assert (mask[0, 0] == 0).nonzero().tolist() == [
        *([0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [3, 2], [3, 3], [4, 3], [4, 4]),
        *([5, 4], [5, 5], [6, 5], [6, 6], [7, 4], [7, 7]),
    ]


def test_padded_rows() -> None:
    layout = padded(TEXT, 3)
    assert layout.images.tolist() == [1, 1, 0]
    assert layout.text.tolist() == [[0] * 4 + [1] * 3 + [2] * 3, [0, 1, 5, 6, 0, 1, 5, 3, 4, 5]]
    assert layout.first.all()
    assert not layout.mixed
    assert layout.attention_mask(torch.float32) is None
    assert layout.padding_mask.sum(1).tolist() == [7, 6, 6]
    assert layout.group.tolist() == [[0] * 7, [1] * 6 + [-1], [2] * 6 + [-1]]


def test_rows_padded_on_the_left() -> None:
    layout = left_padded(TEXT, 3)
    assert layout.text.tolist() == [[0] * 4 + [1] * 3 + [2] * 3, [0, 1, 5, 6, 1, 2, 6, 4, 5, 6]]
    assert layout.position.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4, 5]]


def test_a_layout_moves_whole() -> None:
    moved = packed(TEXT, 3).to(torch.device("meta"))
    assert {value.device.type for value in vars(moved).values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert moved.sequences == 3


def test_groups_are_cut_at_four_rows_of_their_own() -> None:
    # 1 + 1 tokens shared, 1 of each: rows of 3 at the most alone, so 12 together, of which 2 are shared.
    layout = packed(text_of([2] * 11, [1] * 11, [0] * 11, [7, 8] * 11), 1)
    assert [int((layout.group == group).sum()) for group in layout.group.unique() if group >= 0] == [12, 3]
    assert layout.position.shape == (2, 12)


def test_the_longest_are_placed_first_and_the_others_where_they_fit() -> None:
    assert _first_fit([2, 5, 3, 5, 1]) == [(2, 3), (0, 0), (2, 0), (1, 0), (3, 0)]
    assert _first_fit([2, 6, 3, 1]) == [(1, 3), (0, 0), (1, 0), (1, 5)]


# What comes out of a model, compared


def test_distances_are_relative_to_the_second() -> None:
    one = torch.tensor([3.0, 4.0])
    assert apart(one, one) == 0.0
    assert apart(2 * one, one) == pytest.approx(1.0)
    assert apart(one, 2 * one) == pytest.approx(0.5)
    assert apart(one, 0 * one) == math.inf
    assert apart(0 * one, 0 * one) == 0.0
    assert apart(one / 0, one) == apart(one, one / 0) == math.inf


def test_answers_are_compared_until_they_go_different_ways() -> None:
    own = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert _steps_apart(own, own) == 0.0
    ours = own.clone()
    ours[0, 0], ours[2, 0] = 1.5, 9.0
    assert _steps_apart(ours, own) == pytest.approx(8.0)
    assert _steps_apart(ours[:2], own[:2]) == pytest.approx(0.5)
    ours[1] = torch.tensor([0.9, 0.8])  # another token: what follows says nothing
    assert _steps_apart(ours, own) == pytest.approx((0.9**2 + 0.2**2) ** 0.5)
    nan = torch.tensor([[math.nan, 1.0]])
    assert _steps_apart(nan, torch.tensor([[0.0, 1.0]])) == 0.0


def test_tokens_that_mean_something_are_not_drawn(tiny: Tiny) -> None:
    language = load_language_half(make_recipe(tiny).server)
    usual = _usual_ids(SimpleNamespace(language=language))  # type: ignore[arg-type]
    assert usual.tolist() == [0, *range(3, language.vocabulary)]  # without <s> and </s>


def test_lengths_are_those_of_settings_that_change_rows() -> None:
    settings = {
        "sliding_window": 8,
        "attention_chunk_size": [4, 5, None],
        "rope": {"original_max_position_embeddings": 16, "window": None, "factor": 2.0},
        "use_window": True,
        "max_position_embeddings": 64,
    }
    assert sorted(_lengths(settings)) == [4, 5, 8, 16]
    settings["rope_parameters"] = {"rope_type": "dynamic"}
    assert sorted(_lengths(settings)) == [4, 5, 8, 16, 64]


def test_the_first_way_that_fits_is_taken_and_why_others_are_not_is_told() -> None:
    found, ways = _Found(), {name: Ways(name) for name in ("packed", "padded", "alone")}
    loss = TOLERANCES["loss"]

    def compare(trial: Any, way: Ways) -> dict[str, float]:
        if way.rows == "packed":
            raise ValueError("cannot")
        off = way.rows == "padded" or trial == 0  # one draw that fits is enough
        return {"loss": 2 * loss if off else loss, "answers": 0.0}

    trials: Any = [0, 1]
    assert found.first(ways, trials, compare) == Ways("alone")
    assert found.differences == {"loss": loss, "answers": 0.0}
    assert found.others == {
        "packed": "ValueError: cannot",
        "padded": "loss 2.0e-04 from its own, relative, where 1e-04 may be rounding",
    }
    with pytest.raises(ModelError, match="not what it is with tokens: ValueError: cannot"):
        _Found().first({"packed": Ways("packed")}, trials, compare)


# What a language half gives


def test_stop_tokens_are_all_that_settings_name() -> None:
    def model(*told: Any) -> Any:
        first, second, third = (SimpleNamespace(eos_token_id=one) for one in told)
        second.get_text_config = lambda: third
        return SimpleNamespace(generation_config=first, config=second)

    assert _stop_tokens(model(1, None, [2, 3])) == {1, 2, 3}
    assert _stop_tokens(model(None, [4], 4)) == {4}
    assert _stop_tokens(SimpleNamespace(**vars(model(None, None, None)))) == frozenset()
    for wrong in ("a", [True], [1.0]):
        with pytest.raises(ModelError, match="eos_token_id is"):
            _stop_tokens(model(None, wrong, None))


def test_stop_tokens_are_told_as_the_end() -> None:
    assert _ended(torch.tensor([[1, 5, 2], [3, 1, 1]]), {1, 2}, 9).tolist() == [[9, 5, 9], [3, 9, 9]]
    assert _ended(torch.tensor([1, 5]), set(), 9).tolist() == [1, 5]
    told: list[Any] = []
    streamer = SimpleNamespace(put=lambda value: told.append(value.tolist()), end=lambda: told.append("end"))
    ends = _Ends(streamer, {1}, 9)
    ends.put(torch.tensor([1, 2]))
    ends.end()
    assert told == [[9, 2], "end"]


def test_the_head_is_given_states_of_places_alone() -> None:
    head = torch.nn.Linear(3, 5)
    seen: list[torch.Tensor] = []
    with _kept(head, torch.tensor([[0, 1], [2, 0]])):
        head.register_forward_hook(lambda _, given, out: seen.append(given[0]))
        states = torch.randn(2, 4, 3)
        assert head(states).shape == (1, 2, 5)
    assert torch.equal(seen[0][0], torch.stack([states[0, 2], states[1, 0]]))
    assert head(states).shape == (2, 4, 5)
    with pytest.raises(ModelError, match="has no head"), _kept(None, torch.zeros(2, 1).long()):
        pass


@pytest.mark.parametrize("everywhere", [False, True])
def test_logits_of_places_are_those_of_the_whole(tiny: Tiny, everywhere: bool) -> None:
    half = load_language_half(make_recipe(tiny).server).eval()
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    whole = half.run(input_ids=ids).logits
    assert (half.width, half.vocabulary) == (32, whole.shape[-1])
    places = torch.tensor([[1, 0, 1], [3, 2, 0]])
    logits = half.logits(half.embed(ids), places, everywhere=everywhere)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, whole[places[0], places[1]])
    moved = half.logits(half.embed(ids), places, position=torch.arange(4).expand(2, 4) * 3, everywhere=everywhere)
    assert not torch.allclose(logits, moved)
    mask = torch.zeros(2, 1, 4, 4).masked_fill_(~torch.eye(4).bool(), torch.finfo(torch.float32).min)
    alone = half.logits(half.embed(ids), places, mask, everywhere=everywhere)
    assert not torch.allclose(logits[:2], alone[:2])
    torch.testing.assert_close(logits[2], alone[2])


def windowed(**settings: Any) -> dict[str, Any]:
    base = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(**settings)))
    return LanguageHalf.windows(SimpleNamespace(base=base), 8)  # type: ignore[arg-type]


def test_windows_are_of_rows_that_are_longer() -> None:
    assert windowed() == windowed(sliding_window=8) == windowed(attention_chunk_size=8) == {"": None}
    sliding, chunked = windowed(sliding_window=7)[""], windowed(attention_chunk_size=4)[""]
    one, other = torch.arange(8)[:, None], torch.arange(8)
    causal = torch.ones(8, 8).tril().bool()
    assert torch.equal(sliding(0, 0, one, other) & causal, causal & (one - other < 7))
    assert torch.equal(chunked(0, 0, one, other) & causal, causal & (one // 4 == other // 4))
    kinds = ["sliding_attention", "full_attention", "chunked_attention"]
    found = windowed(sliding_window=7, attention_chunk_size=4, layer_types=kinds)
    assert [found[kind] is not None for kind in kinds] == [True, False, True]
    assert windowed(sliding_window=9, layer_types=kinds[:2]) == {"sliding_attention": None, "full_attention": None}
