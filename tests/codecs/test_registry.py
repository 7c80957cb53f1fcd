from typing import Any

import pytest
import torch

from bitseam.codecs import (
    BUILT_IN,
    Bf16,
    BlockwiseInt,
    Codec,
    Delta,
    EntropyStochastic,
    EntropyUniform,
    Fp8,
    Fp16,
    Fp32,
    NormalFloat,
    OneBit,
    RandomizedTopK,
    SplitFC,
    Stochastic,
    TopK,
    Uniform,
    canonical,
    codec_from_config,
)
from bitseam.errors import CodecError, NonFiniteError


def test_canonical_is_one_text_for_one_codec() -> None:
    text = '{"clip":2,"id":"uniform","levels":4}'  # RFC 8785: a whole number has no point
    assert canonical({"levels": 4, "id": "uniform", "clip": 2}) == text
    assert canonical({"clip": 2.0, "levels": 4, "id": "uniform"}) == text
    assert canonical({"id": "stochastic", "levels": 4}) == '{"block":"token","id":"stochastic","levels":4}'


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"id": "zip"}, ["'zip'", "fp32, fp16, bf16, fp8, uniform, stochastic"]),
        ({}, ["None"]),
        ({"id": ["fp32"]}, ["fp32"]),
        ({"id": "fp16", "levels": 4}, ["'levels'", "known: none"]),
        ({"id": "uniform", "levels": 4, "clip": 1.0, "cilp": 2.0}, ["'cilp'", "levels, clip"]),
        ({"id": "uniform", "levels": 4}, ["'clip'"]),
        ({"id": "uniform", "levels": 1, "clip": 1.0}, ["levels"]),
        ({"id": "uniform", "levels": 4, "clip": None}, ["clip"]),
        ({"id": "entropy-uniform", "levels": 257, "clip": 1.0}, ["256", "257"]),
        ({"id": "entropy-uniform", "levels": 4, "clip": 1.0, "groups": 0}, ["groups"]),
        ({"id": "entropy-uniform", "levels": 4, "clip": 1.0, "contexts": 2}, ["contexts", "odd", "2"]),
        ({"id": "entropy-uniform", "levels": 4, "clip": 1.0, "contexts": 17}, ["contexts", "15", "17"]),
        ({"id": "entropy-uniform", "levels": 4, "clip": 1.0, "contexts": 3, "groups": 1366}, ["1366", "4096 tables"]),
        ({"id": "entropy-uniform", "levels": 4, "clip": 1.0, "tables": "abc"}, ["tables"]),
        ({"id": "stochastic", "levels": 4, "block": 0}, ["block"]),
    ],
)
def test_what_is_wrong_is_named(config: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(CodecError) as error:
        codec_from_config(config)
    assert all(name in str(error.value) for name in named)


def test_float16_overflow_is_refused_with_the_value() -> None:
    with pytest.raises(NonFiniteError, match=r"70000 at index \(1,\) overflows fp16"):
        Fp16().encode(torch.tensor([1.0, 70000.0]))


def test_a_payload_with_infinity_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="payload of codec fp16"):
        Fp16().decode(bytes.fromhex("003c007c"), (2,))


@pytest.mark.parametrize(
    ("levels", "count", "payload"), [(2, 7, "80"), (4, 7, "00c0"), (16, 3, "1011"), (5, 3, "7d"), (8, 2, "40")]
)
def test_padding_that_no_encoder_makes_is_refused(levels: int, count: int, payload: str) -> None:
    with pytest.raises(CodecError, match=r"padding|word"):
        Uniform(levels, 1.0).decode(bytes.fromhex(payload), (count,))


@pytest.mark.parametrize("levels", [3, 4])
def test_a_tensor_of_many_chunks(levels: int) -> None:
    x = torch.randn(3 * 2**16 + 5, generator=torch.Generator().manual_seed(0))
    codec, tail = Uniform(levels, 1.4), slice(2**17, None)
    decoded = codec.decode(codec.encode(x), x.shape)
    assert torch.equal(decoded[tail], codec.decode(codec.encode(x[tail]), x[tail].shape))


def test_each_codec_has_its_name() -> None:
    assert {kind: name for name, kind in BUILT_IN.items()} == {
        Fp32: "fp32",
        Fp16: "fp16",
        Bf16: "bf16",
        Fp8: "fp8",
        Uniform: "uniform",
        Stochastic: "stochastic",
        BlockwiseInt: "blockwise-int",
        NormalFloat: "nf",
        EntropyUniform: "entropy-uniform",
        EntropyStochastic: "entropy-stochastic",
        TopK: "top-k",
        RandomizedTopK: "randomized-top-k",
        OneBit: "one-bit",
        SplitFC: "splitfc",
        Delta: "delta",
    }
    assert all(kind.codec_id == name for name, kind in BUILT_IN.items())


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        (Uniform, {"levels": 4}, "clip"),
        (EntropyUniform, {"levels": 4}, "clip"),
        (EntropyStochastic, {}, "step"),
        (SplitFC, {}, "bits"),
        (TopK, {}, "share"),
        (RandomizedTopK, {"share": 0.5}, "chance"),
    ],
)
def test_a_whole_number_and_the_same_with_a_point_are_one_codec(
    kind: type[Codec], options: dict[str, Any], name: str
) -> None:
    number = 0 if name == "chance" else 1
    assert repr(kind(**options, **{name: number})) == repr(kind(**options, **{name: float(number)}))  # types too


def test_which_codecs_are_unbiased_and_of_a_fixed_length() -> None:
    named = {name for name, kind in BUILT_IN.items() if not kind.fixed_length}
    assert named == {"entropy-uniform", "entropy-stochastic", "delta"}
    unbiased = (Fp32(), Stochastic(), EntropyStochastic(), BlockwiseInt(4, rounding="stochastic"), OneBit())
    assert all(codec.unbiased is True for codec in unbiased)
    biased = (Fp16(), Bf16(), BlockwiseInt(4), NormalFloat(4), TopK(0.5), SplitFC(2), Uniform(4, 1.0), Fp8("e4m3"))
    assert all(codec.unbiased is False for codec in biased)


def test_options_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(CodecError, match="options that are no JSON"):
        canonical({"id": "stochastic", "levels": 4, "block": 2**60})


def test_sizes_of_empty_dimensions_are_within_bounds() -> None:
    most = (1, 2**24, 2**24)
    assert Fp32().payload_bytes(most) == 4 * 2**48
    for shape in ((2, 2**24, 2**24), (0, 2**24, 2**24, 2)):
        with pytest.raises(CodecError, match="too large"):
            Fp32().payload_bytes(shape)
    assert Fp32().payload_bytes((0, *most)) == 0
    with pytest.raises(CodecError, match="is no shape"):
        Fp32().payload_bytes((1,) * 9)
    assert Fp32().payload_bytes((1,) * 8) == 4


def test_a_length_is_due_or_the_most() -> None:
    with pytest.raises(CodecError, match=r"takes 8 bytes, not the 7 received"):
        Fp32().decode(bytes(7), (2,))
    codec = EntropyUniform(4, 1.0)
    with pytest.raises(CodecError, match=f"takes {codec.payload_bytes((2,))} bytes at most, not the 99 received"):
        codec.decode(bytes(99), (2,))
