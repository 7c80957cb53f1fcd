import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitseam.codecs.subsets import pack_subsets, subsets_bytes, unpack_subsets
from bitseam.errors import CodecError


def subsets(count: int, chosen: int, width: int, seed: int = 0) -> np.ndarray:
    """A mask (count, width) with `chosen` positions set in each row."""
    order = np.random.default_rng(seed).random((count, width)).argsort(axis=1)
    return order < chosen


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    width = draw(st.integers(1, 70))
    return draw(st.integers(0, 6)), draw(st.integers(0, width)), width


@given(sizes(), st.integers(0, 99))
@settings(deadline=None)
def test_round_trip_at_the_exact_length(size: tuple[int, int, int], seed: int) -> None:
    count, chosen, _ = size
    mask = subsets(*size, seed)
    payload = pack_subsets(mask, chosen)
    assert len(payload) == subsets_bytes(*size)
    positions = unpack_subsets(payload, *size)
    assert positions.shape == (count, chosen)
    back = np.zeros_like(mask)
    np.put_along_axis(back, positions, True, axis=1)
    assert np.array_equal(back, mask)
    assert (np.diff(positions, axis=1) > 0).all()


@given(sizes(), st.data())
@settings(deadline=None)
def test_bytes_have_one_meaning_or_none(size: tuple[int, int, int], data: st.DataObject) -> None:
    count, chosen, width = size
    payload = bytearray(pack_subsets(subsets(*size), chosen))
    for place in data.draw(st.sets(st.integers(0, max(len(payload) - 1, 0)), max_size=3)) if payload else ():
        payload[place] = data.draw(st.integers(0, 255))
    try:
        positions = unpack_subsets(bytes(payload), *size)
    except CodecError:
        return
    mask = np.zeros((count, width), bool)
    np.put_along_axis(mask, positions, True, axis=1)
    assert pack_subsets(mask, chosen) == payload


@pytest.mark.parametrize("width", [64, 729, 1280, 4096])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_bits_near_the_least_there_can_be(width: int, share: float) -> None:
    chosen = max(round(share * width), 1)
    bits = 8 * subsets_bytes(8, chosen, width) / 8
    least = math.log2(math.comb(width, chosen))
    assert least <= bits <= least + 0.9 * chosen + 1
    assert bits <= min(width, chosen * math.ceil(math.log2(width)) + chosen)


# Written down by hand from the format in the module's docstring.
@pytest.mark.parametrize(
    ("positions", "width", "payload"),
    [
        ([[0, 2, 3, 7]], 8, "8d"),  # a bitmap
        ([[1, 2]], 4, "06"),
        ([[5, 14]], 16, "1209"),  # 2 low bits (4 + 2 + 3 = 9 in all) tie with 3 (6 + 2 + 1): the fewer
        ([[5, 14], [0, 1]], 16, "720049"),
        ([[3]], 16, "0103"),
    ],
)
def test_golden_bytes(positions: list[list[int]], width: int, payload: str) -> None:
    mask = np.zeros((len(positions), width), bool)
    np.put_along_axis(mask, np.array(positions), True, axis=1)
    assert pack_subsets(mask, len(positions[0])).hex() == payload
    assert unpack_subsets(bytes.fromhex(payload), len(positions), len(positions[0]), width).tolist() == positions


@pytest.mark.parametrize(
    "payload",
    ["0200", "0700", "120d", "0605", "3209", "1219"],
    ids=["too few", "too many", "not under 14", "twice the same", "padding", "padding of the low bits"],
)
def test_what_no_encoder_makes_is_refused(payload: str) -> None:
    with pytest.raises(CodecError):
        unpack_subsets(bytes.fromhex(payload), 1, 2, 14)
