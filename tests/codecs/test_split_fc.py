from itertools import pairwise

import numpy as np
import pytest
import torch

from bitseam.codecs import SplitFC
from bitseam.codecs.packing import group, pack, packed_bytes, unpack
from bitseam.codecs.split_fc import MENU
from bitseam.errors import CodecError

TOKENS, FEATURES = 300, 64


def uniform_columns(spread: float = 3.0) -> torch.Tensor:
    """(TOKENS, FEATURES): ranges from e^-spread to e^spread around means of their own."""
    generator = torch.Generator().manual_seed(0)
    ranges = torch.linspace(-spread, spread, FEATURES).exp()
    return (torch.rand(TOKENS, FEATURES, generator=generator) + torch.randn(FEATURES, generator=generator)) * ranges


def squared_error(codec: SplitFC, x: torch.Tensor) -> float:
    return float((codec.decode(codec.encode(x), x.shape) - x).square().double().mean())


def levels_of(codec: SplitFC, x: torch.Tensor) -> list[int]:
    """How many levels the features of x (T, D) have, as the payload says."""
    size = packed_bytes(x.shape[1], len(MENU))
    return [MENU[item] for item in unpack(codec.encode(x)[8 : 8 + size], x.shape[1], len(MENU))]


@pytest.mark.parametrize("bits", [0.5, 1, 1.7, 2, 4, 7.3])
def test_the_budget_is_kept_and_used(bits: float) -> None:
    x = uniform_columns()
    payload = SplitFC(bits).encode(x)
    assert len(payload) == int(bits * TOKENS * FEATURES / 8)
    # What is left over is under one feature's next count; zeros at the end may be indices too.
    assert len(payload.rstrip(b"\0")) >= len(payload) - TOKENS * 1.6 / 8 - 16


def test_every_bit_given_lowers_the_error() -> None:
    errors = [squared_error(SplitFC(bits), uniform_columns()) for bits in (0.5, 1, 2, 3, 4, 6, 8)]
    assert all(after < 0.6 * before for before, after in pairwise(errors))


def best_error(x: torch.Tensor, bits: float) -> float:
    """Mean squared error of the best real-valued counts at log2 L bits an index, by bisection on their price."""
    ranges = (x.amax(0) - x.amin(0)).double()
    means = x.double().var(dim=0, correction=0)
    count = torch.logspace(0, 10, 4000, base=2, dtype=torch.float64)[1:]
    low, high = -60.0, 20.0
    for _ in range(60):
        price = (low + high) / 2
        costs = ranges.square()[:, None] / 12 / (count - 1).square() + 2**price * count.log2()
        least, at = costs.min(dim=1)
        rate = torch.where(least < means, count[at].log2(), 0)
        low, high = (price, high) if rate.mean() > bits else (low, price)
    error = torch.where(least < means, ranges.square() / 12 / (count[at] - 1).square(), means)
    return float(error.mean())


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_error_is_near_the_best_that_real_valued_counts_reach(bits: float) -> None:
    x = uniform_columns()
    head = 8 * 8 + (5 + 32) * FEATURES  # at most, if each feature has two ends
    # Fine ends: 256 of them widen a narrow feature by a 255th of the matrix's range, 1.8 times the error at 3 bits.
    measured = squared_error(SplitFC(bits, endpoints=65536), x)
    best = best_error(x, bits - head / (TOKENS * FEATURES))
    assert 0.95 * best < measured < 1.1 * best


def test_shared_by_range_beats_equal_counts() -> None:
    x = uniform_columns()
    ranges = x.amax(0) - x.amin(0)
    equal = float((ranges / 3).square().mean() / 12)  # 4 levels each, headers left out
    assert squared_error(SplitFC(2), x) < equal / 5


def test_wider_features_have_more_levels_and_the_narrowest_their_mean() -> None:
    x = uniform_columns()
    levels = levels_of(SplitFC(2, 65536), x)
    assert levels == sorted(levels)
    assert levels[0] == 1
    assert levels[-1] >= 16
    back = SplitFC(2, 65536).decode(SplitFC(2, 65536).encode(x), x.shape)
    assert [column.unique().numel() for column in back.T][:40] == levels[:40]
    step = (x.max() - x.min()) / 255
    assert ((back[0] - x.mean(0)).abs()[:5] <= step / 2 * 1.001).all()


def test_alike_features_share_alike_until_the_budget_ends() -> None:
    x = (torch.arange(TOKENS) % 50 / 49).repeat(FEATURES, 1).T
    levels = levels_of(SplitFC(3), x)
    assert levels == sorted(levels, reverse=True)
    assert len({MENU.index(count) for count in levels}) <= 2


def test_each_next_count_saves_less_per_bit() -> None:
    rates = np.array([packed_bytes(8 * group(levels), levels) / group(levels) for levels in MENU])
    errors = 1 / (np.array(MENU[1:]) - 1.0) ** 2
    slopes = -np.diff(errors) / np.diff(rates[1:])
    assert (np.diff(slopes) < 0).all()


@pytest.mark.parametrize("magnitude", [1e-44, 1e-38, 1e38, 3.4e38])
def test_extreme_magnitudes(magnitude: float) -> None:
    x = torch.tensor([[magnitude, -magnitude, 0], [magnitude / 2, magnitude, 0]]).repeat(20, 10)
    codec = SplitFC(8)
    assert (codec.decode(codec.encode(x), x.shape) - x).abs().max() <= magnitude / 50 + 1e-44


def test_one_outlier_costs_others_little() -> None:
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    x[3, 7] = 30
    rest = torch.arange(32) != 7
    back = SplitFC(4).decode(SplitFC(4).encode(x), x.shape)
    assert (back - x)[:, rest].square().mean() < 0.03


def test_too_small_a_matrix_still_sends_its_means() -> None:
    x = torch.tensor([[1.0, 5.0, 9.0]])
    codec = SplitFC(0.1, 3)
    assert len(codec.encode(x)) == 8 + 2 + 1
    assert torch.equal(codec.decode(codec.encode(x), x.shape), x)


def crafted(ends: tuple[float, float], items: list[int], codes: list[int], rest: bytes) -> bytes:
    """A payload of SplitFC(8, 4), by hand."""
    return np.array(ends, "<f4").tobytes() + pack(np.array(items), len(MENU)) + pack(np.array(codes), 4) + rest


def test_a_payload_by_hand() -> None:
    # Two features: the mean 2 alone, and entries at 4 levels from 1 to 3. Of 16 bytes, three are left over.
    payload = crafted((0, 3), [0, 3], [2, 1, 3], pack(np.array([0, 1, 2, 3, 3, 3, 0, 0]), 4)) + bytes(3)
    expected = [1, 1 + 2 / 3, 1 + 4 / 3, 3, 3, 3, 1, 1]
    back = SplitFC(8, 4).decode(payload, (8, 2))
    torch.testing.assert_close(back, torch.tensor([[2.0, value] for value in expected]))


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (crafted((3, 0), [0, 0], [0, 0], bytes(5)), "out of order"),
        (crafted((0, float("nan")), [0, 0], [0, 0], bytes(5)), "NaN"),
        (crafted((0, float("inf")), [0, 0], [0, 0], bytes(5)), "infinite"),
        (crafted((0, 1), [0, 3], [0, 1, 0], bytes(5)), "under its least"),
        (crafted((0, 1), [15, 15], [0, 0, 1, 1], bytes(5)), "more than its bytes"),
        (crafted((0, 1), [0, 0], [0, 0], b"\0\0\0\0\1"), "padding"),
        (crafted((0, 1), [0, 0], [0, 0, 1], bytes(5)), "padding"),
        (crafted((0, 1), [0, 2], [0, 0, 1], b"\xff\xff" + bytes(3)), "word"),
    ],
)
def test_what_no_encoder_makes_is_refused(payload: bytes, complaint: str) -> None:
    with pytest.raises(CodecError, match=complaint):
        SplitFC(8, 4).decode(payload, (8, 2))


@pytest.mark.parametrize(("bits", "endpoints"), [(0, 256), (17, 256), ("2", 256), (True, 256), (2, 1), (2, 70000)])
def test_options_out_of_range_are_refused(bits: float, endpoints: int) -> None:
    with pytest.raises(CodecError, match=r"bits|levels"):
        SplitFC(bits, endpoints)
