"""Operations for GPUs against `packing`: the same bytes, levels and refusals. Compiled where there is a GPU alone."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitseam.codecs import Uniform, fused_gpu
from bitseam.codecs.packing import group, pack, packed_bytes, unpack
from bitseam.errors import CodecError
from bitseam.quant.uniform import from_indices, level_values, to_indices

CLIP = 1.3
CPU = torch.device("cpu")
LEVELS = [*range(2, 17), 31, 32, 33, 64, 100, 128, 255, 256]


@contextmanager
def eager() -> Iterator[None]:
    """Operations one by one, as torch computes them without a compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_gpu, "_compiled", lambda make, levels, device: make(levels))
        yield


def values(levels: int, count: int) -> torch.Tensor:
    """Random ones, those on and next to each level and edge of a bin, and some far out."""
    edges = torch.linspace(-CLIP, CLIP, 2 * levels - 1).numpy()
    near = np.concatenate([np.nextafter(edges, np.float32(-9)), edges, np.nextafter(edges, np.float32(9))])
    far = np.array([-3e38, -50, -0.0, 0, 1e-40, 50, 3e38], np.float32)
    x = np.concatenate([near, far, np.random.default_rng(0).normal(0, 1, count).astype(np.float32)])
    return torch.from_numpy(x[-count:] if count < len(near) else x[:count])


def check(x: torch.Tensor, levels: int) -> None:
    """Encode and decode on the device of x, against `packing` on the CPU."""
    indices = to_indices(x.cpu(), levels, CLIP)
    payload = fused_gpu.encode(x, levels, CLIP)
    assert payload == pack(indices.numpy(), levels)
    decoded = fused_gpu.decode(payload, len(x), levels, CLIP, x.device)
    assert decoded.device == x.device
    assert torch.equal(decoded.cpu(), from_indices(indices, levels, CLIP))


@pytest.mark.parametrize("levels", LEVELS)
@eager()
def test_bytes_and_levels_are_those_of_packing(levels: int) -> None:
    check(values(levels, 3000), levels)


@pytest.mark.parametrize("levels", LEVELS)
@eager()
def test_one_symbol_alone_in_its_word(levels: int) -> None:
    check(level_values(levels, CLIP)[torch.eye(group(levels)).long().reshape(-1)], levels)


@given(st.sampled_from(LEVELS), st.integers(1, 130))
@settings(deadline=None)
@eager()
def test_any_count(levels: int, count: int) -> None:
    check(values(levels, count), levels)


@given(st.sampled_from(LEVELS), st.integers(1, 90), st.data())
@settings(deadline=None)
@eager()
def test_bytes_mean_what_packing_says_or_are_refused(levels: int, count: int, data: st.DataObject) -> None:
    size = packed_bytes(count, levels)
    payload = data.draw(st.binary(min_size=size, max_size=size))
    try:
        indices = unpack(payload, count, levels)
    except CodecError as refusal:
        with pytest.raises(CodecError, match=str(refusal)):
            fused_gpu.decode(payload, count, levels, CLIP, CPU)
        return
    decoded = fused_gpu.decode(payload, count, levels, CLIP, CPU)
    assert torch.equal(decoded, level_values(levels, CLIP)[torch.from_numpy(indices.astype(np.int64))])


@pytest.mark.parametrize("levels", [levels for levels in LEVELS if levels & (levels - 1)])
@eager()
def test_the_largest_word_is_taken_and_the_next_refused(levels: int) -> None:
    size = group(levels)
    largest = levels**size - 1
    for words in ([0, largest], [largest, 0]):
        payload = b"".join(word.to_bytes(8, "little") for word in words)
        decoded = fused_gpu.decode(payload, 2 * size, levels, CLIP, CPU).view(2, size)
        assert decoded.tolist() == [[level_values(levels, CLIP)[-bool(word)].item()] * size for word in words]
        payload = b"".join((word + (word > 0)).to_bytes(8, "little") for word in words)
        with pytest.raises(CodecError, match="holds more"):
            fused_gpu.decode(payload, 2 * size, levels, CLIP, CPU)


@pytest.mark.parametrize("levels", [3, 5, 8, 16])
def test_torch_captures_each_way_whole_and_once(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As before any backend: no break, and one graph for whatever count of words."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        fused_gpu, "COMPILER", fused_gpu.COMPILER | {"backend": backend, "fullgraph": True, "options": None}
    )
    fused_gpu._compiled.cache_clear()
    try:
        for words in (2, 3, 50):
            check(values(levels, words * group(levels) + 1), levels)
    finally:
        fused_gpu._compiled.cache_clear()
    assert len(graphs) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@eager()
def test_the_codec_keeps_tensors_on_a_device_that_is_taken(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, x = Uniform(3, CLIP), values(3, 6000).reshape(60, 100).mT.to(dtype).requires_grad_()
    payload = codec.encode(x)
    decoded = codec.decode(payload, x.shape, CPU)
    monkeypatch.setattr(fused_gpu, "takes", lambda device, count, levels: True)
    monkeypatch.delattr(Uniform, "_encode")
    monkeypatch.delattr(Uniform, "_decode")
    assert codec.encode(x) == payload
    assert torch.equal(codec.decode(payload, x.shape, CPU), decoded)


def test_what_is_taken() -> None:
    cuda = torch.device("cuda")
    assert not fused_gpu.takes(CPU, fused_gpu.LEAST, 3)
    assert not fused_gpu.takes(cuda, fused_gpu.LEAST - 1, 3)
    assert not fused_gpu.takes(cuda, fused_gpu.LEAST, fused_gpu.MOST_LEVELS + 1)


def test_where_nothing_compiles_it_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    fused_gpu.compiles.cache_clear()
    monkeypatch.setattr(fused_gpu, "COMPILER", {"backend": "of no machine"})
    with caplog.at_level(logging.WARNING):
        assert not fused_gpu.compiles(CPU)
    assert "goes by the CPU, as torch.compile fails on cpu: Invalid backend" in caplog.text
    fused_gpu.compiles.cache_clear()
    monkeypatch.setattr(fused_gpu, "COMPILER", {"backend": "eager"})
    assert fused_gpu.compiles(CPU)
    fused_gpu.compiles.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8, 11, 16, 256])
def test_a_gpu_makes_the_same_bytes(levels: int) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    codec, x = Uniform(levels, CLIP), values(levels, fused_gpu.LEAST + 7)
    assert fused_gpu.takes(device, len(x), levels)
    payload = codec.encode(x)
    assert codec.encode(x.to(device)) == payload
    decoded = codec.decode(payload, x.shape, device)
    assert decoded.device == device
    assert torch.equal(decoded.cpu(), codec.decode(payload, x.shape))
    assert torch.equal(to_indices(x.to(device), levels, CLIP).cpu(), to_indices(x, levels, CLIP))  # as in training
