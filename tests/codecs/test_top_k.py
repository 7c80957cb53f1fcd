from typing import Any

import pytest
import torch

from bitseam.codecs import RandomizedTopK, TopK, codec_from_config
from bitseam.codecs.top_k import largest
from bitseam.errors import CodecError, NonFiniteError

VALUES = pytest.mark.parametrize("bits", [1, 2, 5, 8, 16])


def features(shape: tuple[int, ...] = (6, 5, 40), seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decoded(codec: TopK, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return codec.decode(codec.encode(x, torch.Generator().manual_seed(seed)), x.shape)


@VALUES
def test_the_largest_are_kept_and_the_rest_is_zero(bits: int) -> None:
    x = features()
    back = decoded(TopK(0.2, bits), x)
    least = x.abs().sort(dim=-1).values[..., -8:-7]
    kept = x.abs() >= least
    assert torch.equal(back != 0, kept)
    assert torch.equal(back.sign(), x.sign() * kept)


def test_nothing_is_scaled_up() -> None:
    x = features()
    back = decoded(TopK(0.2), x)
    assert torch.equal(back[back != 0], x.half().float()[back != 0])


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_values_take_the_nearest_of_even_levels(bits: int) -> None:
    x = features() * 10 ** torch.linspace(-6, 6, 6)[:, None, None]
    back = decoded(TopK(0.2, bits), x)
    largest = x.abs().amax(dim=-1, keepdim=True)
    allowed = largest / (2**bits - 1) * 1.001 + largest / 256
    assert ((back - x).abs() <= allowed)[back != 0].all()
    assert ((back.abs().amax(dim=-1, keepdim=True) - largest).abs() <= largest / 256).all()


@VALUES
def test_what_was_decoded_is_decoded_again(bits: int) -> None:
    for seed in range(5):
        x = features(seed=seed)
        payload = TopK(0.2, bits).encode(x)
        assert TopK(0.2, bits).encode(TopK(0.2, bits).decode(payload, x.shape)) == payload


def test_of_equal_magnitudes_the_first_are_kept() -> None:
    x = torch.tensor([[1.0, -2, 2, -1, 1, 1], [0, 0, 0, 0, 0, 0], [3, 3, 3, 3, 3, 3]])
    assert decoded(TopK(0.5), x).tolist() == [[1, -2, 2, 0, 0, 0], [0] * 6, [3, 3, 3, 0, 0, 0]]


@pytest.mark.parametrize("k", [1, 2, 7, 12])
def test_largest_is_of_exactly_k(k: int) -> None:
    x = torch.randint(0, 4, (200, 12), generator=torch.Generator().manual_seed(0)).float()
    mask = largest(x, k)
    assert (mask.sum(dim=1) == k).all()
    assert ((x * mask).sum(dim=1) == x.sort(dim=1, descending=True).values[:, :k].sum(dim=1)).all()


@pytest.mark.parametrize(("share", "width", "k"), [(0.1, 1280, 128), (0.1, 4, 1), (0.5, 5, 3), (1, 7, 7), (0.99, 3, 3)])
def test_a_share_is_of_the_width(share: float, width: int, k: int) -> None:
    assert TopK(share).kept(width) == k
    assert (decoded(TopK(share), features((9, width))) != 0).sum(dim=-1).tolist() == [k] * 9


@pytest.mark.parametrize(("bits", "value_bits"), [(16, 16), (4, 4 + 16 / 128), (1, 1 + 16 / 128)])
def test_bits_an_element(bits: int, value_bits: float) -> None:
    codec = TopK(0.1, bits)
    # 128 of 1280 positions take 671 bits; plain indices would take 1408, a bitmap 1280, and the least there is is 597.
    assert 8 * len(codec.encode(torch.zeros(8, 1280))) == 8 * (671 + 128 * value_bits)


# Written down by hand from the format: the positions (a bitmap, of four), then scales and values, or float16.
@pytest.mark.parametrize(
    ("codec", "payload"), [(TopK(0.5), "06004000c4"), (TopK(0.5, 2), "06804002"), (TopK(0.5, 1), "06804001")]
)
def test_golden_bytes(codec: TopK, payload: str) -> None:
    x = torch.tensor([1.0, 2.0, -4.0, 0.5])
    assert codec.encode(x).hex() == payload


@VALUES
def test_randomized_top_k_sends_k_values_of_the_token_and_mostly_the_largest(bits: int) -> None:
    x = features((400, 40))
    back = decoded(RandomizedTopK(0.2, bits, 0.1), x)
    sent = back != 0
    assert (sent.sum(dim=1) == 8).all()
    assert torch.equal(back.sign(), x.sign() * sent)
    among_the_largest = (sent & largest(x.abs(), 8)).sum() / sent.sum()
    assert 0.75 < among_the_largest < 0.9


def test_every_value_of_the_rest_is_drawn_alike_and_so_is_every_one_of_the_top() -> None:
    x = torch.linspace(1, 3, 20).repeat(40_000, 1)
    often = (decoded(RandomizedTopK(0.25, chance=0.2), x) != 0).float().mean(dim=0)
    for part in (often[:15], often[15:]):
        # 40000 draws of a chance p have a deviation of sqrt(p (1 - p) / 40000); the largest of 20 hardly passes 4.
        mean = part.mean()
        assert (part - mean).abs().max() < 4 * (mean * (1 - mean) / 40_000) ** 0.5
    assert often[:15].mean() < 0.15 < 0.6 < often[15:].mean()


def test_no_chance_is_top_k() -> None:
    x = features()
    for chance in (0.0, 1e-300):
        assert torch.equal(decoded(RandomizedTopK(0.2, chance=chance), x), decoded(TopK(0.2), x))


def test_all_of_a_token_needs_no_draw() -> None:
    x = features()
    assert torch.equal(decoded(RandomizedTopK(1, chance=0.9), x), x.half().float())


def test_top_k_decodes_what_randomized_top_k_encodes() -> None:
    x, draw = features(), RandomizedTopK(0.2, 4)
    assert torch.equal(TopK(0.2, 4).decode(draw.encode(x, torch.Generator().manual_seed(0)), x.shape), decoded(draw, x))


def test_the_generator_decides() -> None:
    codec, x = RandomizedTopK(0.2), features()
    first, again, other = (codec.encode(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("codec", "payload"),
    [(TopK(0.5), "0700400044"), (TopK(0.5), "060040007c"), (TopK(0.5, 2), "06807f0c"), (TopK(0.5, 2), "0680401c")],
    ids=["three positions", "infinity", "scale", "padding"],
)
def test_bytes_that_no_encoder_makes_are_refused(codec: TopK, payload: str) -> None:
    with pytest.raises(CodecError):
        codec.decode(bytes.fromhex(payload), (4,))


def test_a_value_that_float16_has_not_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="overflows fp16"):
        TopK(0.5).encode(torch.tensor([1.0, 70000.0]))
    assert decoded(TopK(0.5, 8), torch.tensor([1.0, 70000.0]))[1] == pytest.approx(70000, rel=1 / 256)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"id": "top-k", "share": 0}, "share"),
        ({"id": "top-k", "share": 1.1}, "share"),
        ({"id": "top-k", "share": float("nan")}, "share"),
        ({"id": "top-k", "share": "0.1"}, "share"),
        ({"id": "top-k", "share": 0.1, "bits": 0}, "bits"),
        ({"id": "top-k", "share": 0.1, "bits": 9}, "bits"),
        ({"id": "randomized-top-k", "share": 0.1, "bits": 32}, "bits"),
        ({"id": "randomized-top-k", "share": 0.1, "chance": 1}, "chance"),
        ({"id": "randomized-top-k", "share": 0.1, "chance": -0.1}, "chance"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(config: dict[str, Any], named: str) -> None:
    with pytest.raises(CodecError, match=named):
        codec_from_config(config)
