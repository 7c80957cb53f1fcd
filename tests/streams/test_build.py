"""What a recipe's words for a stream become: codecs, quantizer, projection, and the terms of a handshake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bitseam import config
from bitseam.codecs import Stochastic, Uniform, canonical
from bitseam.errors import CodecError, ConfigError
from bitseam.quant import (
    RDFSQ,
    LearnedClipFSQ,
    LevelProjection,
    RateFSQ,
    StepFSQ,
    TanhFSQ,
    TensorRDFSQ,
    semi_orthogonal,
)
from bitseam.streams import Receiver, Sender, agreed, build_streams
from bitseam.streams.build import build_codecs, build_projection, build_quantizer, channels_of
from bitseam.streams.through_codec import ThroughChanges, ThroughCodec

WIDTH = 6
DELTA = {"id": "delta", "first": "fp16", "inner": "stochastic", "capacity": 1000}


def stream(**settings: Any) -> config.Stream:
    return config.Stream(**settings)


@pytest.mark.parametrize(
    ("name", "levels", "clip"),
    [
        ("rd-fsq", 3, 2.0),
        ("rd-fsq-tensor", 3, 1.0),
        ("tanh-fsq", 3, 2.0),
        ("learned-clip-fsq", 3, 1.0),
        ("step-fsq", 8, 3.5),
    ],
)
def test_codes_are_of_the_quantizers_levels_out_to_its_clip(name: Any, levels: int, clip: float) -> None:
    codecs, gradient = build_codecs("image", stream(quantizer=name, levels=levels, clip=2.0))
    assert codecs == (Uniform(levels, clip),)
    assert gradient == Stochastic()


def test_a_rate_is_a_multiple_of_the_clip() -> None:
    rated = stream(quantizer="rate-fsq", levels=15, clip=7.0, codec="entropy-uniform", rates=[1.0, 0.5, 2.0])
    codecs, _ = build_codecs("image", rated)
    assert [codec.config()["clip"] for codec in codecs] == [7.0, 3.5, 14.0]
    assert {codec.config()["levels"] for codec in codecs} == {15}


def test_without_a_quantizer_a_codec_has_its_own_options() -> None:
    codecs, gradient = build_codecs("text", stream(quantizer="none", codec={"id": "nf", "bits": 3}, gradient="fp16"))
    assert [codec.config()["bits"] for codec in codecs] == [3]
    assert gradient.codec_id == "fp16"


def test_what_is_wrong_with_a_codec_is_said_of_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^streams\.image\.codec: codec nf has no option 'beans'"):
        build_codecs("image", stream(quantizer="none", codec={"id": "nf", "beans": 3}))
    with pytest.raises(ConfigError, match=r"^streams\.text\.gradient: unknown codec 'beans'"):
        build_codecs("text", stream(gradient="beans"))


@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("projection", ["learned", "fixed"])
@pytest.mark.parametrize(
    ("name", "kind", "more"),
    [
        ("rd-fsq", RDFSQ, {"levels": 5, "clip": 2.5}),
        ("tanh-fsq", TanhFSQ, {"levels": 5, "clip": 2.5}),
        ("learned-clip-fsq", LearnedClipFSQ, {"levels": 5, "clip": 2.5}),
        ("rate-fsq", RateFSQ, {"levels": 5, "clip": 2.5, "codec": "entropy-uniform"}),
        ("step-fsq", StepFSQ, {"levels": 5}),
    ],
)
def test_both_ends_of_a_quantizer(
    name: str, kind: type[RDFSQ], more: dict[str, Any], projection: Any, channels: int | None
) -> None:
    settings, width = stream(quantizer=name, projection=projection, channels=channels, **more), channels or WIDTH
    codecs, _ = build_codecs("image", settings)
    quantizer, back = build_quantizer(settings, WIDTH, codecs[0]), build_projection(settings, WIDTH)
    assert channels_of(settings, WIDTH) == width
    assert type(quantizer) is kind
    assert (quantizer.width, quantizer.channels, quantizer.levels) == (WIDTH, width, 5)
    assert quantizer.clip == (2.0 if name == "step-fsq" else 2.5)
    assert type(back) is LevelProjection
    assert (back.in_features, back.out_features) == (width, WIDTH)
    assert (back.rotation is not None) == (name == "rate-fsq")
    for end in (quantizer.project, back):
        assert all(weight.requires_grad == (projection == "learned") for weight in end.parameters())


def test_steps_are_the_recipes() -> None:
    settings = stream(quantizer="step-fsq", levels=5, channels=3, steps=[0.5, 0.0, 2.0])
    quantizer = build_quantizer(settings, WIDTH, build_codecs("image", settings)[0][0])
    assert isinstance(quantizer, StepFSQ)
    assert quantizer.step.tolist() == [0.5, 0.0, 2.0]


def test_both_ends_of_the_published_quantizer() -> None:
    settings = stream(quantizer="rd-fsq-tensor", levels=3, channels=4)
    quantizer = build_quantizer(settings, WIDTH, build_codecs("image", settings)[0][0])
    back = build_projection(settings, WIDTH)
    assert type(quantizer) is TensorRDFSQ
    assert (quantizer.width, quantizer.channels, quantizer.levels) == (WIDTH, 4, 3)
    assert type(back) is nn.Linear
    assert back.weight.shape == (WIDTH, 4)


@pytest.mark.parametrize("projection", ["learned", "fixed"])
@pytest.mark.parametrize(("codec", "kind"), [({"id": "fp16"}, ThroughCodec), (DELTA, ThroughChanges)])
def test_both_ends_where_a_codec_takes_floats(codec: dict[str, Any], kind: type[ThroughCodec], projection: Any) -> None:
    settings = stream(quantizer="none", codec=codec, channels=4, projection=projection)
    built = build_codecs("image", settings)[0][0]
    quantizer, back = build_quantizer(settings, WIDTH, built), build_projection(settings, WIDTH)
    assert type(quantizer) is kind
    assert quantizer.codec is built
    assert (quantizer.width, quantizer.channels) == (WIDTH, 4)
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, semi_orthogonal(4, WIDTH).T)
    for end in (quantizer.project, back):
        assert all(weight.requires_grad == (projection == "learned") for weight in end.parameters())
    whole = stream(quantizer="none", codec=codec)
    assert type(build_projection(whole, WIDTH)) is nn.Identity


def test_streams_are_numbered_in_their_order_and_what_they_agree_on_is_flat_text() -> None:
    rated = stream(
        quantizer="rate-fsq", levels=3, clip=1.0, codec={"id": "entropy-uniform", "groups": 1}, rates=[1.0, 2.0]
    )
    streams = {"image": rated, "text": stream(quantizer="none", codec="fp16", channels=4, gradient="fp32")}
    for kind in (Sender, Receiver):
        ends = build_streams(kind, streams, WIDTH)
        assert [(name, end.name, end.number, end.width, end.channels) for name, end in ends.items()] == [
            ("image", "image", 0, WIDTH, WIDTH),
            ("text", "text", 1, WIDTH, 4),
        ]
        assert all(type(end) is kind for end in ends.values())
        tables = '"contexts":1,"groups":1,"id":"entropy-uniform","levels":3,"tables":[]'
        assert agreed(ends) == {
            "streams": "image text",
            "stream.image.direction": "up",
            "stream.image.channels": "6",
            "stream.image.codec.0": f'{{"clip":1,{tables}}}',
            "stream.image.codec.1": f'{{"clip":2,{tables}}}',
            "stream.image.gradient": canonical({"id": "stochastic"}),
            "stream.text.direction": "up",
            "stream.text.channels": "4",
            "stream.text.codec.0": '{"id":"fp16"}',
            "stream.text.gradient": '{"id":"fp32"}',
        }


@pytest.mark.parametrize("rate", [-1, 2])
def test_a_rate_that_was_not_agreed_is_named(rate: int) -> None:
    rated = stream(quantizer="rate-fsq", levels=3, clip=1.0, codec="entropy-uniform", rates=[1.0, 2.0])
    for end in (Sender("image", 0, rated, WIDTH), Receiver("image", 0, rated, WIDTH)):
        assert end.rates == 2
        with pytest.raises(CodecError, match=f"^image: rate {rate} where 2 were agreed, from 0 on$"):
            end.codec(rate)


def test_the_most_bytes_are_those_of_the_longest_of_all_codecs() -> None:
    shape = (2, 3, WIDTH)
    for codec, gradient in (("fp32", "fp16"), ("fp16", "fp32")):
        end = Receiver("image", 0, stream(quantizer="none", codec=codec, gradient=gradient), WIDTH)
        assert end.codec_id == codec
        assert end.most_bytes(shape) == 4 * 2 * 3 * WIDTH
