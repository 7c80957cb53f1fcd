"""What is particular to the codecs with a scale for each block of a token: whole numbers, FP8 and NormalFloat."""

from typing import Any

import pytest
import torch

from bitseam.codecs import BlockwiseInt, Codec, Fp8, NormalFloat, codec_from_config
from bitseam.codecs.normal_float import normal_values
from bitseam.errors import CodecError, NonFiniteError

NEAREST = [
    *(BlockwiseInt(bits, block) for bits in (2, 3, 5, 8) for block in (4, "token")),
    *(Fp8(format, block) for format in ("e4m3", "e5m2") for block in (4, "token")),
    *(NormalFloat(bits, block) for bits in range(2, 9) for block in (4, "token")),
]
each = pytest.mark.parametrize("codec", NEAREST, ids=str)

# The table printed in the paper's appendix (arXiv 2305.14314).
NF4 = (
    "-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334 "
    "-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224 "
    "0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"
)


def features(shape: tuple[int, ...] = (50, 19), seed: int = 0) -> torch.Tensor:
    """Tokens of very different loudness, from 1e-6 to 1e6, and blocks that differ too."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x * 10 ** torch.linspace(-6, 6, shape[0])[:, None] * torch.linspace(0.2, 3, shape[1])


@each
def test_what_was_decoded_is_decoded_again(codec: Codec) -> None:
    for seed in range(5):
        x = features(seed=seed)
        payload = codec.encode(x)
        decoded = codec.decode(payload, x.shape)
        assert codec.encode(decoded) == payload


@each
def test_a_token_is_coded_alike_whatever_its_neighbours(codec: Codec) -> None:
    x = features()
    louder = x.flip(0) * 1000
    louder[7] = x[7]
    decoded = [codec.decode(codec.encode(each), each.shape) for each in (x, louder)]
    assert torch.equal(decoded[0][7], decoded[1][7])
    assert not torch.equal(decoded[0][8], decoded[1][8])


@each
def test_a_block_is_scaled_by_itself_and_its_largest_value_hardly_changes(codec: Codec) -> None:
    x = features((1000, 12))
    decoded = codec.decode(codec.encode(x), x.shape)
    blocks = [each.abs().reshape(1000, -1, 4 if codec.block == 4 else 12).amax(dim=2) for each in (x, decoded)]
    # bfloat16 rounds by 1/256 at the most, and a byte by half a 255th of the spread of a token's scales.
    spread = blocks[0].amax(dim=1, keepdim=True) - blocks[0].amin(dim=1, keepdim=True)
    allowed = blocks[0].amax(dim=1, keepdim=True) / 256 + (spread / 500 if isinstance(codec, NormalFloat) else 0)
    assert ((blocks[0] - blocks[1]).abs() <= allowed).all()


@each
@pytest.mark.parametrize("magnitude", [1e-45, 1e-41, 1.3e-40, 1e-38, 1e38, 3.38e38])
def test_extreme_magnitudes(codec: Codec, magnitude: float) -> None:
    x = torch.tensor([[magnitude, -magnitude, 0, magnitude / 2, 0, 0, 0, 0]])
    decoded = codec.decode(codec.encode(x), x.shape)
    assert torch.isfinite(decoded).all()
    assert (decoded[0, 4:] == 0).all()
    if magnitude > 1e-39:
        assert decoded[0, 0] == pytest.approx(magnitude, rel=0.01)
        assert torch.equal(codec.decode(codec.encode(decoded), x.shape), decoded)


@each
def test_no_bfloat16_near_is_refused(codec: Codec) -> None:
    with pytest.raises(NonFiniteError, match="too large"):
        codec.encode(torch.full((1, 2), torch.finfo(torch.float32).max))


@each
@pytest.mark.parametrize("scale", ["80bf", "807f", "c07f"], ids=["negative", "infinite", "nan"])
def test_scales_that_no_encoder_makes_are_refused(codec: Codec, scale: str) -> None:
    payload = bytes.fromhex(scale) + bytes(codec.payload_bytes((1, 3)) - 2)
    with pytest.raises(CodecError, match="scale"):
        codec.decode(payload, (1, 3))


@pytest.mark.parametrize(
    ("codec", "bits"),
    [
        (BlockwiseInt(8), 8 + 16 / 1280),
        (BlockwiseInt(4, 64), 4.25),
        (BlockwiseInt(2, 64), 1.6 + 0.25),  # three levels: 40 in 8 bytes
        (Fp8("e4m3", 128), 8.125),
        (NormalFloat(4), 4 + 8 / 64 + 32 / 1280),
        (NormalFloat(2), 2 + 8 / 64 + 32 / 1280),
    ],
    ids=str,
)
def test_bits_an_element(codec: Codec, bits: float) -> None:
    assert 8 * len(codec.encode(torch.zeros(10, 1280))) / 12800 == pytest.approx(bits)


def word(number: int, size: int) -> str:
    return number.to_bytes(size, "little").hex()


# Written down by hand from the formats in the modules' docstrings; 2.0 is 0x4000 in bfloat16, 1.0 is 0x3f80.
@pytest.mark.parametrize(
    ("codec", "x", "payload"),
    [
        (BlockwiseInt(8), [2.0, -2.0, 0.0], "0040" + word(254 + 127 * 255**2, 3)),
        (BlockwiseInt(4, 2), [2.0, -2.0, 0.0, 1.0], "0040803f" + word(14 + 7 * 15**2 + 14 * 15**3, 2)),
        (Fp8("e4m3"), [2.0, -2.0, 0.0, 1.0], "00407efe0076"),
        (Fp8("e5m2"), [2.0, -2.0, 0.0, 1.0], "00407bfb0077"),
        (NormalFloat(4, 2), [2.0, -2.0, 0.0, 1.0], "803f0040" + "ff00" + "0ff7"),
    ],
    ids=str,
)
def test_golden_bytes(codec: Codec, x: list[float], payload: str) -> None:
    assert codec.encode(torch.tensor(x)).hex() == payload
    assert codec.decode(bytes.fromhex(payload), (len(x),)).tolist() == x


def test_nf4_is_the_table_of_the_paper() -> None:
    torch.testing.assert_close(normal_values(4), torch.tensor([float(x) for x in NF4.split()]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_normal_values(bits: int) -> None:
    values = normal_values(bits)
    assert values.shape == (2**bits,)
    assert (values.diff() > 0).all()
    assert [values[0], values[2 ** (bits - 1) - 1], values[-1]] == [-1, 0, 1]


def test_the_scales_of_a_token_are_quantized_between_its_least_and_largest() -> None:
    x = torch.tensor([[1.0, 1.5, 2.0, 3.0], [0, 0, 0, 0]])
    payload = NormalFloat(2, 1).encode(x)
    assert payload[:8].hex() == "803f404000000000"
    assert list(payload[8:16]) == [0, 64, 128, 255, 0, 0, 0, 0]
    decoded = NormalFloat(2, 1).decode(payload, x.shape)
    torch.testing.assert_close(decoded, x, rtol=0, atol=1 / 255)


def test_a_block_whose_scale_vanishes_beside_a_louder_one_is_zeros() -> None:
    x = torch.tensor([[0.0, 0.0, 1e-4, 2e-4, 1.0, -1.0]])
    codec = NormalFloat(4, 2)
    assert codec.decode(codec.encode(x), x.shape).tolist() == [[0, 0, 0, 0, 1, -1]]
    assert codec.encode(torch.tensor([[0.0, 0, 0, 0, 1, -1]])) == codec.encode(x)


def test_scales_that_bfloat16_cannot_tell_apart_take_no_steps() -> None:
    x = torch.tensor([[1.0, 1 + 2**-20, 1.0], [2.0, 2.0, 2.0]])
    payload = NormalFloat(2, 1).encode(x)
    assert payload[:14].hex() == "803f803f" + "00400040" + "00" * 6
    assert NormalFloat(2, 1).decode(payload, x.shape).tolist() == [[1, 1, 1], [2, 2, 2]]


def test_a_least_scale_over_the_largest_is_refused() -> None:
    with pytest.raises(CodecError, match="least scale"):
        NormalFloat(4).decode(bytes.fromhex("0040803f0000"), (1,))


@pytest.mark.parametrize(("format", "octet"), [("e4m3", "7f"), ("e4m3", "ff"), ("e5m2", "7c"), ("e5m2", "fd")])
def test_bytes_that_are_no_number_are_refused(format: str, octet: str) -> None:
    with pytest.raises(NonFiniteError, match="payload of codec fp8"):
        Fp8(format).decode(bytes.fromhex("803f" + octet), (1,))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("block", [5, "token"])
def test_stochastic_rounding_is_unbiased(bits: int, block: int | str) -> None:
    codec, draws, x = BlockwiseInt(bits, block, "stochastic"), 4000, features((4, 9)).flip(0)
    generator = torch.Generator().manual_seed(0)
    payloads = [codec.encode(x, generator) for _ in range(draws)]
    decoded = torch.stack([codec.decode(payload, x.shape) for payload in payloads]).double()
    # The largest of 36 z-scores passes 4 once in 440 seeds; where the deviation is zero, only float32 rounding is left.
    deviation = decoded.std(dim=0) / draws**0.5
    assert ((decoded.mean(dim=0) - x).abs() <= 4 * deviation + 1e-6 * x.abs().amax(dim=1, keepdim=True)).all()
    assert codec.unbiased
    assert not BlockwiseInt(bits, block).unbiased


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"id": "blockwise-int", "bits": 9}, "bits"),
        ({"id": "blockwise-int", "bits": 1}, "bits"),
        ({"id": "blockwise-int", "bits": True}, "bits"),
        ({"id": "blockwise-int", "bits": 4, "block": 0}, "block"),
        ({"id": "blockwise-int", "bits": 4, "rounding": "up"}, "rounding"),
        ({"id": "fp8", "format": "e3m4"}, "e4m3 or e5m2"),
        ({"id": "fp8", "format": ["e4m3"]}, "e4m3 or e5m2"),
        ({"id": "fp8", "format": "e4m3", "block": "channel"}, "block"),
        ({"id": "nf", "bits": 1}, "bits"),
        ({"id": "nf", "bits": 4.0}, "bits"),
        ({"id": "nf", "bits": 4, "block": -64}, "block"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(config: dict[str, Any], named: str) -> None:
    with pytest.raises(CodecError, match=named):
        codec_from_config(config)
