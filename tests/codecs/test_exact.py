"""Exact values of what codecs are made of, where a round trip would not tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bitseam.codecs import (
    BUILT_IN,
    EntropyStochastic,
    EntropyUniform,
    SplitFC,
    codec_from_config,
    codecs,
    fused,
    fused_gpu,
)
from bitseam.codecs.entropy.stochastic import _LEAST, Multiples, _tables
from bitseam.codecs.entropy.stream import LANE, most_bytes
from bitseam.codecs.packing import group, pack, packed_bytes, unpack
from bitseam.codecs.split_fc import MENU
from bitseam.errors import CodecError
from bitseam.quant.uniform import from_indices, to_indices

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("count", "most"), [(0, 0), (1, 14), (LANE, 2 * LANE + 12), (LANE + 1, 2 + 2 * (LANE + 1) + 24)]
)
def test_the_longest_stream(count: int, most: int) -> None:
    assert most_bytes(count) == most


def test_multiples_are_counted_by_class() -> None:
    multiples = Multiples(1.0, np.array([0, 3], np.uint8), np.array([[0, 0], [5, -127]], np.int16))
    counts = multiples.counts()
    assert counts.shape == (16, 255)
    assert {(int(c), int(m) - 127): int(counts[c, m]) for c, m in np.argwhere(counts)} == {
        (0, 0): 2,
        (3, 5): 1,
        (3, -127): 1,
    }


def test_zeros_are_read_as_multiples_of_nothing() -> None:
    codec = EntropyStochastic()
    read = codec.read(codec.encode(torch.zeros(3, 4)), (3, 4))
    assert (read.step, read.classes.tolist()) == (0.0, [0, 0, 0])
    assert read.classes.dtype == np.uint8
    assert (read.multiples.dtype, read.multiples.shape) == (np.int16, (3, 4))


def test_what_lies_on_a_multiple_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is drawn, and zero is the least that can be."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.zeros(*size))
    x = torch.tensor([[2.0, -2.0], [2.0, 2.0]])
    codec = EntropyStochastic(1.0)
    assert torch.equal(codec.decode(codec.encode(x), x.shape), x)


def test_a_class_however_rare_has_a_share() -> None:
    codec = EntropyStochastic(100.0)  # of a root mean square of 1/200
    x = torch.zeros(40_000, 1)
    x[7] = 1.0
    payload = codec.encode(x, torch.Generator().manual_seed(0))
    shares = [nibble for byte in payload[2:10] for nibble in (byte & 15, byte >> 4)]
    assert shares[0] == 15
    assert sorted(shares)[-2:] == [1, 15]
    assert torch.equal(codec.decode(payload, x.shape) != 0, x != 0)


def test_tables_reach_as_far_as_their_least_chance() -> None:
    tables = _tables()
    assert len(tables) == 15
    lengths = [len(table) for table in tables]
    assert lengths == sorted(lengths)
    assert lengths[0] == 3  # multiples of one, however rare
    assert lengths[-1] == 255
    assert tables[0] == (65446, 45, 45)
    assert all(min(table) >= _LEAST * 2**16 for table in tables)


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"levels": 1}, "levels"), ({"clip": 0.0}, "clip"), ({"groups": 4097}, "groups"), ({"groups": True}, "groups")],
)
def test_a_grid_that_is_none_is_refused(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(CodecError, match=named):
        EntropyUniform(**{"levels": 4, "clip": 1.0} | changed)


def test_the_most_tables() -> None:
    assert len(EntropyUniform(2, 1.0, groups=4096)._rows()) == 4096
    assert len(EntropyUniform(2, 1.0, groups=1365, contexts=3)._rows()) == 4095
    assert EntropyUniform(256, 1.0, groups=1).levels == 256


@pytest.mark.parametrize("contexts", [1, 3, 5])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3), (2, 4, 3), (0, 3)])
def test_counts_are_whole_numbers_of_every_table(shape: tuple[int, ...], contexts: int) -> None:
    codec = EntropyUniform(4, 1.0, 2, contexts=contexts)
    counts = codec.counts(torch.zeros(shape))
    assert counts.dtype == np.int64
    assert counts.shape == (2 * contexts, 4)
    assert counts.sum() == counts[:, 2].sum() == torch.zeros(shape).numel()
    if len(shape) != 3:  # by the tables of the middle context
        assert not np.delete(counts, np.arange(2) * contexts + contexts // 2, axis=0).any()


def levels_of(x: torch.Tensor, bits: float) -> list[int]:
    features = x.shape[1]
    items = unpack(SplitFC(bits).encode(x)[8 : 8 + packed_bytes(features, len(MENU))], features, len(MENU))
    return [MENU[item] for item in items]


def test_a_constant_feature_is_its_mean_alone() -> None:
    x = torch.stack([torch.linspace(-1, 1, 50), torch.ones(50)], 1)
    levels = levels_of(x, 16)
    assert levels[0] > 1
    assert levels[1] == 1


def test_a_feature_may_begin_and_end_at_one_value() -> None:
    payload = np.array((0, 3), "<f4").tobytes() + pack(np.array([0, 3]), len(MENU)) + pack(np.array([2, 1, 1]), 4)
    back = SplitFC(8, 4).decode(payload.ljust(16, b"\0"), (8, 2))
    assert torch.equal(back, torch.tensor([[2.0, 1.0]]).expand(8, 2))


def test_two_ends_are_paid_for_where_a_mean_was() -> None:
    """Eleven features keep their mean: with few tokens, ends cost as much as entries."""
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.2, 3, 16)
    assert levels_of(x, 4) == [1] * 11 + [4] * 5


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8, 12, 17, 31, 32])
def test_symbols_are_packed_from_and_to_the_types_that_hold_them(bits: int) -> None:
    symbols = np.random.default_rng(0).integers(0, 2**bits, 50)
    for kind in (np.int64, np.min_scalar_type(2**bits - 1)):
        payload = pack(symbols.astype(kind), 2**bits)
        assert len(payload) == -(-50 * bits // 8)
        value = sum(int(symbol) << bits * place for place, symbol in enumerate(symbols))
        assert payload == value.to_bytes(len(payload), "little")
        back = unpack(payload, 50, 2**bits)
        assert back.dtype == np.min_scalar_type(2**bits - 1)
        assert back.tolist() == symbols.tolist()
        assert back.flags.writeable


@pytest.mark.parametrize(("levels", "kind"), [(256, np.uint8), (257, np.uint16), (65537, np.uint32)])
def test_symbols_are_of_the_least_type_that_holds_them(levels: int, kind: type) -> None:
    back = unpack(pack(np.array([levels - 1]), levels), 1, levels)
    assert (back.dtype, back.tolist()) == (kind, [levels - 1])


def test_channels_fall_into_groups_side_by_side() -> None:
    assert EntropyUniform(4, 1.0, 3).group_of(7).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_every_codec_may_be_named() -> None:
    assert BUILT_IN.items() <= codecs().items()
    with pytest.raises(CodecError, match="codec nf needs the option 'bits'; known: bits, block"):
        codec_from_config({"id": "nf"})


def test_kernels_take_sixteen_levels_and_a_million_elements() -> None:
    assert fused.whole(2**20, 16) == 2**20
    assert fused.whole(2**20 - 1, 16) == 0
    assert fused.whole(2**20, 17) == 0


@pytest.mark.parametrize("levels", [10, 12])
def test_kernels_take_what_is_left_of_a_word_beside_whole_digits(levels: int) -> None:
    count = 3 * group(levels)
    assert group(levels) % 2 == 1  # two symbols make a digit
    x = torch.randn(count, generator=torch.Generator().manual_seed(0))
    indices = to_indices(x, levels, 1.3)
    payload = fused.encode(x.numpy(), levels, 1.3)
    assert payload == pack(indices.numpy(), levels)
    out = np.empty(count, np.float32)
    fused.decode(np.frombuffer(payload, np.uint8), levels, 1.3, out)
    assert np.array_equal(out, from_indices(indices, levels, 1.3).numpy())


@pytest.mark.parametrize("wrong", [0, 1])
def test_kernels_refuse_a_word_that_holds_too_much_wherever_it_is(wrong: int) -> None:
    words = [0, 0]
    words[wrong] = 3**40
    payload = b"".join(word.to_bytes(8, "little") for word in words)
    with pytest.raises(CodecError, match="holds more"):
        fused.decode(np.frombuffer(payload, np.uint8), 3, 1.0, np.empty(80, np.float32))


# Of kernels for GPUs, what a machine without one can tell


def test_what_is_taken_where_kernels_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(fused_gpu, "compiles", lambda device: asked.append(device) or True)
    least, levels = fused_gpu.LEAST, fused_gpu.MOST_LEVELS
    assert (least, levels) == (2**20, 256)
    assert fused_gpu.takes(CUDA, least, levels)
    assert fused_gpu.takes(CUDA, least + 1, 2)
    assert asked == [CUDA, CUDA]
    assert not fused_gpu.takes(CUDA, least - 1, levels)
    assert not fused_gpu.takes(CUDA, least, levels + 1)
    assert not fused_gpu.takes(torch.device("cpu"), least, levels)
    monkeypatch.setattr(fused_gpu, "compiles", lambda device: False)
    assert not fused_gpu.takes(CUDA, least, levels)


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (2, (8, 1, torch.uint8, torch.int32, 8)),
        (3, (40, 8, torch.int64, torch.int64, 19)),
        (4, (4, 1, torch.uint8, torch.int32, 4)),
        (8, (8, 3, torch.int32, torch.int32, 8)),
        (32, (8, 5, torch.int64, torch.int64, 6)),
        (128, (8, 7, torch.int64, torch.int64, 4)),
        (255, (8, 8, torch.int64, torch.int64, 3)),
        (256, (1, 1, torch.uint8, torch.int32, 1)),
    ],
)
def test_words_of_gpus(levels: int, words: tuple[object, ...]) -> None:
    made = fused_gpu._Words.of(levels)
    assert (made.size, made.octets, made.dtype, made.sums, made.together) == words


def test_each_count_of_levels_has_one_kernel_whether_gradients_are_recorded_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    compiler = fused_gpu.COMPILER | {"backend": backend, "fullgraph": True, "options": None}
    monkeypatch.setattr(fused_gpu, "COMPILER", compiler)
    fused_gpu._compiled.cache_clear()
    try:
        for levels, recorded in ((2, True), (2, False), (3, False), (4, True)):
            with torch.set_grad_enabled(recorded), torch._dynamo.config.patch(recompile_limit=1):
                fused_gpu.pack_words(torch.zeros(2 * group(levels)), levels, 1.0)
    finally:
        fused_gpu._compiled.cache_clear()
    assert len(graphs) == 3  # though torch gives up after one of a function, here


@pytest.mark.parametrize("base", [3**19, 5**13, 10**9, 2**31 - 1])
def test_unsigned_words_are_divided(base: int) -> None:
    numbers = [0, 1, base - 1, base, 2 * base, 2 * base + 1, 6 * base, 6 * base + 1, 2**63 - 1, 2**63, 2**64 - 1]
    numbers += [2**64 // base * base, 2**64 // base * base - 1, (2**63 // base | 1) * base * 2 % 2**64]
    signed = torch.tensor([number - 2**64 * (number >= 2**63) for number in numbers])
    quotient, remainder = fused_gpu._divide(signed, base)
    assert [q % 2**64 for q in quotient.tolist()] == [number // base for number in numbers]
    assert remainder.tolist() == [number % base for number in numbers]
