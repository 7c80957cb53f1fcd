"""Codec `entropy-uniform` with contexts: tables chosen by the left and the upper token of the same image."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitseam.codecs import EntropyUniform
from bitseam.codecs.entropy import stream as entropy_stream
from bitseam.codecs.entropy.stream import LANE, Runs, encode
from bitseam.errors import CodecError
from bitseam.quant.contexts import contexts_of, wavefronts
from bitseam.quant.uniform import from_indices, to_indices


def context(above: list[float], contexts: int) -> int:
    """That of a level whose neighbours are so many levels above the middle."""
    mean = sum(above) / len(above) if above else 0
    away = int(math.copysign(math.floor(abs(mean) + 0.5), mean))
    return min(max(away, -(contexts // 2)), contexts // 2) + contexts // 2


def neighbours(position: int, tokens: int) -> list[int]:
    side = math.isqrt(tokens) if math.isqrt(tokens) ** 2 == tokens else tokens
    return [position - 1] * (position % side > 0) + [position - side] * (position >= side)


def drawn(images: int, tokens: int, tables: np.ndarray, contexts: int) -> tuple[torch.Tensor, float]:
    """Indices (images, tokens, 1) of a source whose tables (contexts, L) go by context, and their entropy in bits."""
    rng, levels, bits = np.random.default_rng(0), tables.shape[1], 0.0
    indices = np.zeros((images, tokens, 1), np.int64)
    entropies = -(tables * np.log2(tables)).sum(1)
    for image in indices[:, :, 0]:
        for position in range(tokens):
            row = context([image[p] - (levels - 1) / 2 for p in neighbours(position, tokens)], contexts)
            image[position] = rng.choice(levels, p=tables[row])
            bits += entropies[row]
    return torch.from_numpy(indices), bits


LIKE = np.array([[0.85, 0.1, 0.05], [0.15, 0.7, 0.15], [0.05, 0.1, 0.85]])  # of the neighbours, mostly
FINE = np.array([np.roll([0.6, 0.15, 0.1, 0.1, 0.05], shift) for shift in range(5)])


@pytest.mark.parametrize(("tables", "tokens"), [(LIKE, 15), (LIKE, 16), (FINE, 16)], ids=["row", "square", "fine"])
def test_within_two_percent_of_the_conditional_entropy(tables: np.ndarray, tokens: int) -> None:
    contexts, levels = tables.shape
    indices, entropy = drawn(2000, tokens, tables, contexts)
    x = from_indices(indices, levels, 1.0)
    codec = EntropyUniform(levels, 1.0, 1, contexts=contexts)
    codec = codec.learned(codec.counts(x[:1000]))
    spent = 8 * len(codec.encode(x))
    assert spent == pytest.approx(entropy, rel=0.02)
    assert codec.bits(codec.counts(x)) == pytest.approx(spent, rel=5e-3)  # the ends of lanes
    plain = EntropyUniform(levels, 1.0, 1)
    assert spent < 0.85 * 8 * len(plain.learned(plain.counts(x)).encode(x))
    assert torch.equal(codec.decode(codec.encode(x), x.shape), x)


@pytest.mark.parametrize("levels", [2, 4, 9])
@pytest.mark.parametrize("tokens", [1, 2, 6, 9, 16])
@pytest.mark.parametrize("contexts", [3, 7])
def test_a_context_is_the_mean_of_the_neighbours(levels: int, tokens: int, contexts: int) -> None:
    indices = torch.randint(levels, (3, tokens, 2), generator=torch.Generator().manual_seed(0)).byte()
    found = contexts_of(indices, levels, contexts)
    for image in range(3):
        for channel in range(2):
            above = [int(index) - (levels - 1) / 2 for index in indices[image, :, channel]]
            due = [context([above[p] for p in neighbours(t, tokens)], contexts) for t in range(tokens)]
            assert found[image, :, channel].tolist() == due


@pytest.mark.parametrize("tokens", [1, 5, 9, 729])
def test_each_position_comes_once_and_after_its_neighbours(tokens: int) -> None:
    come: set[int] = set()
    for positions in wavefronts(tokens):
        assert all(come.issuperset(neighbours(position, tokens)) for position in positions.tolist())
        assert come.isdisjoint(positions.tolist())
        come |= set(positions.tolist())
    assert come == set(range(tokens))


def images(count: int, tokens: int = 9, channels: int = 5, seed: int = 0) -> torch.Tensor:
    """(count, tokens, channels) whose tokens are alike, channels unlike."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(count, 1, channels, generator=generator)
    return (whole + 0.5 * torch.randn(count, tokens, channels, generator=generator)) * torch.linspace(0.1, 2, channels)


def fitted(x: torch.Tensor, levels: int = 5, groups: int = 2, contexts: int = 3) -> EntropyUniform:
    codec = EntropyUniform(levels, 2.0, groups, contexts=contexts)
    return codec.learned(codec.counts(x))


@pytest.mark.parametrize("tokens", [6, 9])
def test_the_order_on_the_stream_is_that_of_the_protocol(tokens: int) -> None:
    x = images(4, tokens)
    codec, indices = fitted(x), to_indices(x, 5, 2.0).numpy()
    side, places = 3 if tokens == 9 else 6, []
    for image, token, channel in np.ndindex(*indices.shape):
        above = [int(indices[image, p, channel]) - 2 for p in neighbours(token, tokens)]
        table = channel * 2 // 5 * 3 + context(above, 3)
        places.append((token // side + token % side, table, image, token, channel))
    places.sort()
    tables, symbols = [place[1] for place in places], [indices[place[2:]] for place in places]
    runs = Runs(codec.tables, np.arange(len(places) + 1), np.array(tables))
    assert codec.encode(x) == encode(np.array(symbols, np.uint8), runs)


def test_contexts_never_cross_images() -> None:
    x = images(6)
    codec = fitted(x)
    assert np.array_equal(codec.counts(x), sum(codec.counts(image[None]) for image in x))
    turned = x.flip(0)
    assert np.array_equal(codec.counts(x), codec.counts(turned))
    together = codec.decode(codec.encode(x), x.shape)
    for image, due in zip(x, together, strict=True):
        assert torch.equal(codec.decode(codec.encode(image[None]), (1, *image.shape))[0], due)


def test_tokens_that_are_of_no_image_take_the_middle_tables() -> None:
    x = images(6)
    codec = fitted(x, groups=2, contexts=3)
    middle = EntropyUniform(5, 2.0, 2, codec.tables[1::3])
    for flat in (x.reshape(-1, 5), x.reshape(-1), x.reshape(3, 2, 9, 5)):
        assert codec.encode(flat) == middle.encode(flat)
        assert torch.equal(codec.decode(codec.encode(flat), flat.shape), middle.decode(middle.encode(flat), flat.shape))
        assert codec.counts(flat)[1::3].tolist() == middle.counts(flat).tolist()
        assert codec.counts(flat).sum() == flat.numel()


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_numpy_and_constriction_write_and_read_the_same_bytes(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3, 4, 9, 16]), st.integers(1, 7)))
    levels, contexts = data.draw(st.sampled_from([2, 3, 8, 255])), data.draw(st.sampled_from([3, 5, 15]))
    x = images(*shape, seed=data.draw(st.integers(0, 99)))
    codec = fitted(x, levels, data.draw(st.integers(1, 9)), contexts)
    due = from_indices(to_indices(x, levels, 2.0), levels, 2.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy_stream, "LANE", data.draw(st.sampled_from([7, 100, LANE])))
        payload = codec.encode(x)
        assert torch.equal(codec.decode(payload, shape), due)
        patch.setattr(entropy_stream, "constriction", None)
        assert codec.encode(x) == payload
        assert torch.equal(codec.decode(payload, shape), due)


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_payloads_are_refused_or_have_one_meaning(data: st.DataObject) -> None:
    x = images(3)
    codec = fitted(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy_stream, "LANE", data.draw(st.sampled_from([50, LANE])))
        payload = bytearray(codec.encode(x))
        for place in data.draw(st.lists(st.integers(0, len(payload) - 1), max_size=3)):
            payload[place] ^= data.draw(st.integers(1, 255))
        damaged = bytes(payload[: data.draw(st.integers(0, len(payload)))]) + data.draw(st.binary(max_size=9))
        said = []
        for coder in (entropy_stream.constriction, None):
            patch.setattr(entropy_stream, "constriction", coder)
            try:
                said.append(codec.decode(damaged, x.shape))
            except CodecError:
                said.append(None)
            else:
                assert codec.encode(said[-1]) == damaged
    assert (said[0] is None) == (said[1] is None)
    assert said[0] is None or torch.equal(said[0], said[1])


@pytest.mark.parametrize("coder", [entropy_stream.constriction, None], ids=["constriction", "numpy"])
@pytest.mark.parametrize("lane", [50, LANE])
def test_what_is_wrong_is_named(coder: object, lane: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entropy_stream, "constriction", coder)
    monkeypatch.setattr(entropy_stream, "LANE", lane)
    x = images(3)
    codec, lanes = fitted(x), -(-x.numel() // lane)
    payload = codec.encode(x)
    cases = [
        (payload[:-1], "bytes"),
        (payload[:-4], f"lane {lanes - 1} does not end with its last symbol"),
        (payload + b"\1\0\0\0", f"lane {lanes - 1} does not end with its last symbol"),
        (payload + bytes(4), f"lane {lanes - 1} ends in a zero word"),
    ]
    for damaged, complaint in cases:
        with pytest.raises(CodecError, match=complaint):
            codec.decode(damaged, x.shape)
    with pytest.raises(CodecError, match=r"lane \d+ does not end"):
        fitted(images(3, seed=1)).decode(payload, x.shape)


@pytest.mark.parametrize("shape", [(1, 2**47, 1), (2**40, 1, 2**8), (1, 2**24, 2**24), (1, 2**40, 0)])
def test_a_lie_about_the_shape_takes_no_memory(shape: tuple[int, ...]) -> None:
    codec = EntropyUniform(5, 1.0, contexts=3)
    tracemalloc.start()
    try:
        if math.prod(shape):
            with pytest.raises(CodecError):
                codec.decode(bytes(1000), shape)
        else:
            assert codec.decode(b"", shape).shape == shape
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_tables_travel() -> None:
    codec = fitted(images(9), levels=5, groups=4, contexts=3)
    assert len(codec.table_bytes()) == 2 * 4 * 3 * 5
    assert EntropyUniform(5, 2.0, 4, contexts=3).with_tables(codec.table_bytes()) == codec
    with pytest.raises(CodecError, match="12 tables of 5 levels take 120 bytes, not 40"):
        EntropyUniform(5, 2.0, 4, contexts=3).with_tables(bytes(40))
    with pytest.raises(CodecError, match="12 rows of 5"):
        EntropyUniform(5, 2.0, 4, codec.tables[:4], contexts=3)


def test_a_context_that_was_not_seen_has_the_shares_of_its_group() -> None:
    counts = np.zeros((6, 3), np.int64)
    counts[1] = 8000, 1000, 1000
    first, seen, _, other, *_ = np.array(EntropyUniform(3, 1.0, 2, contexts=3).learned(counts).tables) / 65536
    assert first == pytest.approx([0.8, 0.1, 0.1], abs=1e-3)
    assert seen == pytest.approx([0.8, 0.1, 0.1], abs=1e-3)
    assert other == pytest.approx([1 / 3] * 3, abs=1e-3)
    counts[0] = 0, 0, 36  # few, and yet most of what is known
    assert np.array(EntropyUniform(3, 1.0, 2, contexts=3).learned(counts).tables)[0, 2] / 65536 > 0.9
