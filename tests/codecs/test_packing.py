import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitseam.codecs.packing import group, pack, packed_bytes, unpack
from bitseam.errors import CodecError

any_levels = st.one_of(
    st.integers(1, 300), st.integers(1, 2**32), st.integers(0, 32).map(lambda bits: 2**bits), st.just(2**32 - 1)
)


@st.composite
def symbols(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    levels = draw(any_levels)
    count = draw(st.integers(0, 150))
    return levels, draw(arrays.arrays(np.int64, count, elements=st.integers(0, levels - 1)))


@given(symbols())
@settings(deadline=None)
def test_round_trip_at_the_exact_length(case: tuple[int, np.ndarray]) -> None:
    levels, indices = case
    payload = pack(indices, levels)
    assert len(payload) == packed_bytes(len(indices), levels)
    back = unpack(payload, len(indices), levels)
    assert np.array_equal(back, indices)
    assert back.dtype == np.min_scalar_type(levels - 1)


@given(symbols(), st.data())
@settings(deadline=None)
def test_pieces_of_whole_groups_join(case: tuple[int, np.ndarray], data: st.DataObject) -> None:
    levels, indices = case
    cut = data.draw(st.integers(0, len(indices) // group(levels))) * group(levels)
    assert pack(indices[:cut], levels) + pack(indices[cut:], levels) == pack(indices, levels)


@given(any_levels, st.integers(0, 40), st.data())
@settings(deadline=None)
def test_bytes_have_one_meaning_or_none(levels: int, count: int, data: st.DataObject) -> None:
    size = packed_bytes(count, levels)
    payload = data.draw(st.binary(min_size=size, max_size=size))
    try:
        indices = unpack(payload, count, levels)
    except CodecError:
        return
    assert indices.max(initial=0) < levels
    assert pack(indices, levels) == payload


def test_density() -> None:
    assert packed_bytes(1000, 2) == 125
    assert packed_bytes(1000, 4) == 250
    assert packed_bytes(1000, 2**15) == 1875
    assert packed_bytes(1000, 3) == 200  # 40 in 8 bytes: 1.6 bits each, against log2 3 = 1.585
    assert packed_bytes(3, 3) == 1
    assert packed_bytes(1000, 1) == 0
    for levels in range(3, 257):
        assert 8 * packed_bytes(10_000, levels) <= 1.15 * np.log2(levels) * 10_000 + 64


def test_a_word_holds_as_many_symbols_as_fit() -> None:
    for levels in [*range(3, 3000), 65535, 65537, 2**32 - 1]:
        if levels & (levels - 1):
            assert levels ** group(levels) <= 2**64 < levels ** (group(levels) + 1), levels


# Written down by hand from the format in the module's docstring.
@pytest.mark.parametrize(
    ("levels", "indices", "payload"),
    [
        (2, [1, 0, 0, 0, 0, 0, 0, 0, 1], "0101"),
        (4, [0, 1, 2, 3, 1], "e401"),
        (16, [1, 2, 3], "2103"),
        (8, [1, 2, 3], "d100"),
        (256, [7, 255], "07ff"),
        (2**15, [1, 1], "01800000"),
        (65536, [258], "0201"),
        (2**18, [0x3FFFF, 1], "ffff070000"),
        (3, [1, 2, 2], "19"),
        (3, [0] * 39 + [1, 2], (3**39).to_bytes(8, "little").hex() + "02"),
        (1000, [1, 1], "e90300"),
    ],
)
def test_golden_bytes(levels: int, indices: list[int], payload: str) -> None:
    assert pack(np.array(indices), levels).hex() == payload
    assert unpack(bytes.fromhex(payload), len(indices), levels).tolist() == indices


@pytest.mark.parametrize(
    ("levels", "count", "payload"),
    [
        (4, 3, "c0"),  # two bits of padding, set
        (2**15, 1, "0080"),
        (3, 3, "1b"),  # 27 = 3^3
        (3, 40, "ffffffffffffffff"),
        (10, 19, "ffffffffffffffff"),  # over 10^19
        (1000, 2, "40420f"),  # 10^6
        (2**32 - 1, 1, "ffffffff"),
    ],
)
def test_what_no_encoder_makes_is_refused(levels: int, count: int, payload: str) -> None:
    with pytest.raises(CodecError):
        unpack(bytes.fromhex(payload), count, levels)


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 16, 256, 1000, 2**15])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_another_length_is_refused(levels: int, count: int) -> None:
    payload = pack(np.zeros(count, np.uint8), levels)
    for wrong in (payload + b"\0", payload[:-1] if payload else b"\1"):
        with pytest.raises(CodecError, match="bytes"):
            unpack(wrong, count, levels)


@pytest.mark.parametrize("wrong", [4, -1])
def test_indices_out_of_range_are_refused(wrong: int) -> None:
    with pytest.raises(CodecError, match=f"{wrong} at position 1"):
        pack(np.array([0, wrong, 1]), 4)


@pytest.mark.parametrize("levels", [0, -1, 2**32 + 1])
def test_levels_out_of_range_are_refused(levels: int) -> None:
    with pytest.raises(CodecError, match="levels"):
        packed_bytes(1, levels)
