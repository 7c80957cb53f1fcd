from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitseam.codecs import EntropyUniform, Uniform
from bitseam.codecs.entropy import stream as entropy_stream
from bitseam.codecs.entropy.stream import LANE, TOTAL, Runs, decode, encode, most_bytes
from bitseam.errors import CodecError

FLAT = ((16384,) * 4,)
SKEWED = ((60000, 5000, 500, 36), (1, 1, 1, 65533))


def runs_of(tables: tuple[tuple[int, ...], ...], *sizes: int) -> Runs:
    return Runs(tables, np.cumsum([0, *sizes]))


@pytest.fixture(params=["constriction", "numpy"])
def coder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(entropy_stream, "constriction", None)
    return request.param


# Written down by hand from the format in the module's docstring.
@pytest.mark.parametrize(
    ("tables", "symbols", "stream"),
    [
        (FLAT, [], ""),
        (FLAT, [0, 0, 0], ""),  # nothing to tell from x = 0
        (FLAT, [2], "00008000"),
        (FLAT, [1, 2], "00004002"),  # 2: x = 2^23; 1: x = 2^24 (2^23 // 2^22) + 2^22
        (((65535, 1),), [1], "00ffff00"),
        (((65535, 1),), [1] * 3, "00ffffffffffff00"),  # c = 0xffff00, p = 256
        (((65535, 1),), [1] * 4, "00ffffffffffffffff000000"),  # x = 2^56 - 256: its low word is written first
    ],
)
def test_golden_bytes(tables: tuple[tuple[int, ...], ...], symbols: list[int], stream: str, coder: str) -> None:
    runs = runs_of(tables, len(symbols))
    assert encode(np.array(symbols, np.uint8), runs).hex() == stream
    assert decode(bytes.fromhex(stream), runs).tolist() == symbols


@st.composite
def coded(draw: st.DrawFn, longest: int = 300) -> tuple[np.ndarray, Runs]:
    """Symbols likely and unlikely under random tables, in runs of which some are empty."""
    levels, groups = draw(st.sampled_from([2, 3, 4, 17, 256])), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = rng.exponential(size=(groups, levels)) ** draw(st.integers(0, 8))
    codec = EntropyUniform(levels, 1.0, groups).learned(weights / weights.max() * 1e6)
    sizes = [draw(st.sampled_from([0, 1, 7, longest])) for _ in range(groups)]
    parts = []
    for size, table in zip(sizes, codec.tables, strict=True):
        likely = rng.choice(levels, size, p=np.array(table) / TOTAL)
        parts.append(likely if draw(st.booleans()) else rng.integers(0, levels, size))
    return np.concatenate(parts).astype(np.uint8), runs_of(codec.tables, *sizes)


def both_ways(symbols: np.ndarray, runs: Runs) -> bytes:
    stream = encode(symbols, runs)
    assert np.array_equal(decode(stream, runs), symbols)
    assert len(stream) <= most_bytes(len(symbols))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy_stream, "constriction", None)
        assert encode(symbols, runs) == stream
        assert np.array_equal(decode(stream, runs), symbols)
    return stream


@given(coded())
@settings(deadline=None, max_examples=60)
def test_numpy_and_constriction_write_and_read_the_same_bytes(case: tuple[np.ndarray, Runs]) -> None:
    both_ways(*case)


@pytest.mark.parametrize("count", [99, 100, 101, 305, 4000])
def test_lanes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy_stream, "LANE", 100)
    rng = np.random.default_rng(count)
    symbols = rng.choice(4, count, p=np.array(SKEWED[0]) / TOTAL).astype(np.uint8)
    symbols[: count // 2] = 3 - (rng.random(count // 2) < 1e-2)
    stream = both_ways(symbols, runs_of(SKEWED[::-1], count // 2, count - count // 2))
    assert len(stream) % 4 == (2 * ((count - 1) // 100)) % 4


def test_a_tensor_of_many_lanes() -> None:
    x = features(1000, 3)
    codec = EntropyUniform(16, 2.5, 7)
    codec = codec.learned(codec.counts(x))
    assert x.numel() > 5 * LANE
    assert torch.equal(
        codec.decode(codec.encode(x), x.shape), Uniform(16, 2.5).decode(Uniform(16, 2.5).encode(x), x.shape)
    )


def test_no_stream_is_longer_than_stated(coder: str) -> None:
    count = LANE + 7
    stream = encode(np.zeros(count, np.uint8) + 1, runs_of(((65535, 1),), count))
    assert 2 * count <= len(stream) <= most_bytes(count)


@given(coded(), st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_streams_are_refused_or_have_one_meaning(case: tuple[np.ndarray, Runs], data: st.DataObject) -> None:
    symbols, runs = case
    stream = bytearray(encode(symbols, runs))
    for place in data.draw(st.lists(st.integers(0, 2**16), max_size=3)):
        if stream:
            stream[place % len(stream)] ^= data.draw(st.integers(1, 255))
    damaged = bytes(stream[: data.draw(st.integers(0, len(stream)))]) + data.draw(st.binary(max_size=9))
    said = []
    for coder in (entropy_stream.constriction, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(entropy_stream, "constriction", coder)
            try:
                said.append(decode(damaged, runs).tolist())
            except CodecError:
                said.append(None)
            else:
                assert encode(np.array(said[-1], np.uint8), runs) == damaged
    assert said[0] == said[1]


@given(st.binary(max_size=400), st.integers(0, 3000))
@settings(deadline=None)
def test_random_bytes_are_refused_or_have_one_meaning(payload: bytes, tokens: int) -> None:
    codec = EntropyUniform(4, 1.0, 2, SKEWED)
    try:
        levels = codec.decode(payload, (tokens, 3))
    except CodecError:
        return
    assert codec.encode(levels) == payload


@pytest.mark.parametrize(
    ("stream", "count", "complaint"),
    [
        ("01", 3, "1 bytes"),
        ("0000800000", 1, "5 bytes"),
        ("00004002", 1, "does not end with its last symbol"),
        ("00004002" * 3, 2, "does not end with its last symbol"),
        ("0000400200000000", 2, "zero word"),
        ("", 2 * LANE, "0 bytes"),
        ("0200" + "00004002", 2 * LANE, "lanes of 2 words in a stream of 1"),
        ("0100" + "0000400200000000", 2 * LANE, "lane 1 ends in a zero word"),
    ],
)
def test_what_is_wrong_is_named(stream: str, count: int, complaint: str, coder: str) -> None:
    with pytest.raises(CodecError, match=complaint):
        decode(bytes.fromhex(stream), runs_of(FLAT, count))


@pytest.mark.parametrize("shape", [(2**48,), (1, 2**47), (2**47, 1), (2**40, 2**8)])
def test_a_lie_about_the_shape_takes_no_memory(shape: tuple[int, ...]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CodecError):
            EntropyUniform(4, 1.0).decode(bytes(1000), shape)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def features(tokens: int, seed: int) -> torch.Tensor:
    """Unit-deviation channels (tokens, 96) from heavy-tailed to flat, as those of a vision tower differ."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, 96))
    x = np.sign(x) * np.abs(x) ** np.linspace(0.5, 1.8, 96)
    return torch.from_numpy(x / x.std(axis=0))


@pytest.mark.parametrize(("levels", "clip"), [(3, 1.22), (4, 1.49), (16, 2.51)])
def test_within_one_percent_of_the_entropy_of_the_groups(levels: int, clip: float) -> None:
    codec = EntropyUniform(levels, clip, groups=8)
    codec = codec.learned(codec.counts(features(4096, 1)))
    x = features(8192, 2)
    counts = codec.counts(x)
    share = counts / counts.sum(axis=1, keepdims=True)
    entropy = -(counts * np.log2(share, where=counts > 0, out=np.zeros_like(share))).sum()
    spent = 8 * (len(codec.encode(x)) + len(codec.table_bytes()))
    assert entropy < spent <= 1.01 * entropy
    assert spent < 8 * len(EntropyUniform(levels, clip, groups=8).encode(x))
    assert codec.bits(counts) == pytest.approx(8 * len(codec.encode(x)), rel=3e-3)  # the ends of lanes


def test_groups_are_contiguous_channels() -> None:
    x = torch.full((5, 7), -1.0)
    x[:, 3:] = 1.0
    assert EntropyUniform(2, 1.0, 2).counts(x).tolist() == [[15, 5], [0, 15]]  # channels 0 to 3, 4 to 6
    assert EntropyUniform(2, 1.0, 9).counts(x[:, :3]).sum(axis=1).tolist() == [5, 0, 0, 5, 0, 0, 5, 0, 0]


def test_tables_travel() -> None:
    codec = EntropyUniform(4, 1.0, 2, SKEWED)
    assert EntropyUniform(4, 1.0, 2).with_tables(codec.table_bytes()) == codec
    assert codec.table_bytes()[:4].hex() == "60ea8813"
    assert EntropyUniform(3, 1.0, 1).table_bytes().hex() == "565555555555"


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "take 8 bytes, not 0"),
        (bytes(9), "take 8 bytes, not 9"),
        (bytes(8), "table 0.*from 1 that sum to 65536"),
        (np.array([0, 65535, 32768, 32768], "<u2").tobytes(), "table 0"),
        (np.array([32768, 32768, 32768, 32767], "<u2").tobytes(), "table 1"),
        (np.array([32768, 32768, 0, 0], "<u2").tobytes(), "table 1"),
    ],
)
def test_tables_that_are_none_are_refused(raw: bytes, complaint: str) -> None:
    with pytest.raises(CodecError, match=complaint):
        EntropyUniform(2, 1.0, 2).with_tables(raw)


@pytest.mark.parametrize("tables", [((0, 65536),), ((32768.0, 32768.0),), ((True, 65535),), ((65536,),), ((1, 2),), 7])
def test_frequencies_are_checked(tables: object) -> None:
    with pytest.raises(CodecError, match="table"):
        EntropyUniform(2, 1.0, 1, tables)  # type: ignore[arg-type]
