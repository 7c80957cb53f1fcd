"""Every quantizer and codec, named in a recipe and trained with over the protocol, in each direction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import Tiny, make_recipe
from pairs import QUESTIONS, RATE, batches, pair, train, weights
from torch import nn
from training import train_and_compare

from bitseam import config
from bitseam.codecs import BUILT_IN
from bitseam.config import QuantizerName
from bitseam.errors import CodecError, ConfigError
from bitseam.quant import Quantized, Quantizer, semi_orthogonal
from bitseam.streams import Sender
from bitseam.streams.build import build_projection, build_quantizer
from bitseam.streams.through_codec import ThroughCodec
from bitseam.text.prompts import Prompter
from bitseam.train import StepRecord

QUANTIZED: dict[str, dict[str, Any]] = {
    "rd-fsq": {"projection": "fixed"},
    "rd-fsq-tensor": {"levels": 3},
    "tanh-fsq": {"codec": "entropy-uniform"},
    "learned-clip-fsq": {"channels": 20},
    "step-fsq": {"channels": 4, "steps": [0.5, 0.0, 1.0, 2.0]},
    "rate-fsq": RATE,
}
FLOATS: list[dict[str, Any]] = [
    {"id": "fp32"},
    {"id": "fp16"},
    {"id": "bf16"},
    {"id": "fp8", "format": "e4m3"},
    {"id": "blockwise-int", "bits": 4, "block": 16},
    {"id": "blockwise-int", "bits": 8, "rounding": "stochastic"},
    {"id": "nf", "bits": 4},
    {"id": "stochastic", "levels": 4},
    {"id": "entropy-stochastic", "step": 1.0},
    {"id": "one-bit"},
    {"id": "one-bit", "scale": "least-error", "block": 8},
    {"id": "top-k", "share": 0.25},
    {"id": "top-k", "share": 0.25, "bits": 4},
    {"id": "randomized-top-k", "share": 0.25, "chance": 0.2},
    {"id": "splitfc", "bits": 4},
]
UP = [{"quantizer": name} | settings for name, settings in QUANTIZED.items()]
UP += [{"quantizer": "none", "codec": codec} for codec in FLOATS]
DELTA: dict[str, Any] = {"id": "delta", "first": "fp16", "inner": {"id": "nf", "bits": 4}, "capacity": 10**6}
UP += [{"quantizer": "none", "codec": codec, "channels": 20} for codec in FLOATS[1::4]]
UP += [{"quantizer": "none", "codec": codec} for codec in (DELTA, DELTA | {"inner": "stochastic", "capacity": 2000})]
UP += [{"quantizer": "none", "codec": "fp16", "channels": 20, "projection": "fixed"}]


def named(settings: Mapping[str, Any]) -> str:
    return "-".join(named(v) if isinstance(v, dict) else str(v) for v in settings.values())


@pytest.mark.parametrize("settings", UP, ids=named)
def test_features_by_each(tiny: Tiny, settings: dict[str, Any]) -> None:
    train_and_compare(make_recipe(tiny, streams__image=settings))


@pytest.mark.parametrize("codec", FLOATS, ids=named)
def test_gradients_by_each(tiny: Tiny, codec: dict[str, Any]) -> None:
    train_and_compare(make_recipe(tiny, streams__image={"gradient": codec}))


@pytest.mark.parametrize("codec", FLOATS[-4:], ids=named)
def test_prompts_too(tiny: Tiny, codec: dict[str, Any]) -> None:
    settings = {"quantizer": "none", "codec": codec, "channels": 16, "gradient": codec}
    train_and_compare(make_recipe(tiny, streams__text=settings))


def test_none_is_left_out() -> None:
    assert {settings["quantizer"] for settings in UP} == set(get_args(QuantizerName))
    assert {codec["id"] for codec in FLOATS} == set(BUILT_IN) - {*config.GRID_CODECS, "delta"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"gradient": "uniform"}, "gradient: uniform writes levels of a quantizer's grid"),
        ({"gradient": {"id": "entropy-uniform", "levels": 4, "clip": 1.0}}, "gradients have no scale of their own"),
        ({"gradient": DELTA}, "gradient: codec delta is for what comes again"),
        ({"codec": DELTA}, "codec delta takes features as they are"),
        ({"codec": "fp16"}, "codec fp16 takes features as they are: set quantizer = 'none'"),
        ({"quantizer": "none", "codec": "uniform"}, "codec uniform writes a quantizer's levels"),
        ({"quantizer": "none", "codec": "fp16", "levels": 3}, "levels: a quantizer's; with quantizer = 'none' leave"),
        ({"quantizer": "none", "codec": "fp16", "clip": 1, "distortion_weight": 1}, "clip, distortion_weight: a quan"),
        ({"quantizer": "none", "codec": "fp16", "steps": [1.0] * 32}, "steps are for the quantizer step-fsq"),
        ({"quantizer": "none", "codec": "fp16", "rates": [1, 2]}, "rates are for the quantizer rate-fsq"),
        ({"quantizer": "none", "codec": "fp16", "projection": "fixed"}, "of all 32 channels nothing is projected"),
    ],
)
def test_what_makes_no_sense_is_refused_at_load(tiny: Tiny, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_recipe(tiny, streams__image=settings)


def ends(settings: dict[str, Any], width: int = 12) -> tuple[Quantizer, nn.Module]:
    stream = config.Stream(quantizer="none", **settings)
    sender = Sender("image", 0, stream, width)
    return build_quantizer(stream, width, sender.codec(0)), build_projection(stream, width)


def test_a_map_to_fewer_channels_and_back_starts_as_a_projection() -> None:
    quantizer, projection = ends({"codec": "fp32", "channels": 5})
    x = torch.randn(2, 3, 12)
    basis = semi_orthogonal(5, 12)
    torch.testing.assert_close(quantizer.projected(x), x @ basis.T)
    torch.testing.assert_close(projection(quantizer(x).levels), x @ basis.T @ basis)
    assert all(p.requires_grad for end in (quantizer, projection) for p in end.parameters())
    fixed = ends({"codec": "fp32", "channels": 5, "projection": "fixed"})
    assert not any(p.requires_grad for end in fixed for p in end.parameters())
    assert [len(list(end.parameters())) for end in ends({"codec": "fp32"})] == [0, 0]
    with pytest.raises(CodecError, match="width of at least that"):
        ends({"codec": "fp32", "channels": 13})


def levels(quantizer: Quantizer, x: torch.Tensor) -> Quantized:
    with torch.no_grad():
        return quantizer(x)


def test_what_is_drawn_follows_the_seed_in_training_and_never_moves_in_evaluation() -> None:
    quantizer, _ = ends({"codec": {"id": "stochastic", "levels": 3}})
    assert isinstance(quantizer, ThroughCodec)
    x = torch.randn(2, 3, 12)
    drawn = []
    for quantizer.seed in (1, 1, 2, None, None):
        drawn.append(levels(quantizer, x).payload)
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 4
    quantizer.eval()
    asked = []
    for quantizer.seed in (1, 2, None):
        asked.append(levels(quantizer, x).payload)
    assert len(set(asked)) == 1


def test_questions_are_asked_with_the_top_k_that_a_random_choice_varies() -> None:
    top: dict[str, Any] = {"id": "top-k", "share": 0.25, "bits": 4}
    quantizer, _ = ends({"codec": top | {"id": "randomized-top-k", "chance": 0.6}})
    same, _ = ends({"codec": top})
    assert isinstance(quantizer, ThroughCodec)
    x = torch.randn(20, 12)
    assert not torch.equal(levels(quantizer, x).levels, levels(same, x).levels)
    asked = levels(quantizer.eval(), x)
    assert torch.equal(asked.levels, levels(same, x).levels)
    assert asked.payload is not None
    assert torch.equal(quantizer.codec.decode(asked.payload, x.shape), asked.levels)


@pytest.mark.parametrize("codec", [FLOATS[7], FLOATS[9], FLOATS[13], DELTA | {"inner": "stochastic"}], ids=named)
def test_what_is_drawn_is_drawn_again_by_a_run_that_goes_on(tiny: Tiny, tmp_path: Path, codec: dict[str, Any]) -> None:
    """Though others draw from PyTorch's generator, and questions come between."""

    def run(folder: str, stops: list[int]) -> dict[str, torch.Tensor]:
        settings = {"quantizer": "none", "codec": codec, "gradient": codec if codec["id"] != "delta" else "stochastic"}
        recipe = make_recipe(tiny, streams__image=settings, out=str(tmp_path / folder), train__accumulate=2)
        for stop in [*stops, recipe.train.steps]:
            with pair(recipe) as running:
                client, draw = running.client, batches(recipe, running.client)

                def told(record: StepRecord, client: Any = client, draw: Any = draw, stop: int = stop) -> bool:
                    if stops:
                        torch.rand(7)
                        text = Prompter(recipe.text).batch(QUESTIONS[:1])
                        list(client.ask(draw(0)[0][:1], text, 2))
                    return client.reached == stop

                train(client, recipe, draw, [told])
        return weights(client.model) | weights(running.party.model)

    whole, resumed = run("whole", []), run("resumed", [1, 3])
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
