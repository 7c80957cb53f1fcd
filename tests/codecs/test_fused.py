"""The kernels against `packing`: the same bytes, the same levels, the same refusals."""

import numpy as np
import pytest
import torch

from bitseam.codecs import Uniform, fused
from bitseam.codecs.packing import group, pack, packed_bytes
from bitseam.errors import CodecError
from bitseam.quant.uniform import from_indices, level_values, to_indices

CLIP = 1.3
few = pytest.mark.parametrize("levels", [2, 3, 8, 11, 16])
every = pytest.mark.parametrize("levels", [levels for levels in range(2, 17) if levels not in (2, 3, 8, 11, 16)])


def check_bytes_and_levels(levels: int) -> None:
    """Of random values, of those on and next to each level and edge of a bin, and of some far out."""
    edges = torch.linspace(-CLIP, CLIP, 2 * levels - 1).numpy()
    near = np.concatenate([np.nextafter(edges, np.float32(-9)), edges, np.nextafter(edges, np.float32(9))])
    far = np.array([-3e38, -50, -0.0, 0, 1e-40, 50, 3e38], np.float32)
    x = np.concatenate([near, far, np.random.default_rng(0).normal(0, 1, 5000).astype(np.float32)])
    x = x[: len(x) // group(levels) // 8 * group(levels) * 8]  # whole words, whatever their size
    indices = to_indices(torch.from_numpy(x), levels, CLIP)
    payload = fused.encode(x, levels, CLIP)
    assert payload == pack(indices.numpy(), levels)
    out = np.empty_like(x)
    fused.decode(np.frombuffer(payload, np.uint8), levels, CLIP, out)
    assert np.array_equal(out, from_indices(indices, levels, CLIP).numpy())


@few
def test_bytes_and_levels_are_those_of_packing(levels: int) -> None:
    check_bytes_and_levels(levels)


@pytest.mark.slow
@every
def test_bytes_and_levels_of_other_counts_of_levels(levels: int) -> None:
    check_bytes_and_levels(levels)


@pytest.mark.parametrize("levels", [3, 11])
def test_a_word_too_large_is_refused(levels: int) -> None:
    out = np.empty(group(levels), np.float32)
    largest = levels ** group(levels) - 1
    fused.decode(np.frombuffer(largest.to_bytes(8, "little"), np.uint8), levels, CLIP, out)
    assert (out == level_values(levels, CLIP)[-1].item()).all()
    with pytest.raises(CodecError, match="holds more"):
        fused.decode(np.frombuffer((largest + 1).to_bytes(8, "little"), np.uint8), levels, CLIP, out)


@pytest.mark.parametrize("levels", [3, 8])
def test_large_tensors_take_kernels_and_packing_takes_what_is_left(
    levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, x = Uniform(levels, CLIP), torch.randn(3, fused.LEAST // 3 + 7, generator=torch.Generator().manual_seed(0))
    at = fused.whole(x.numel(), levels)
    assert 0 < at < x.numel()
    payload = codec.encode(x)
    decoded = codec.decode(payload, x.shape)
    monkeypatch.setattr(fused, "_numba", lambda: None)  # as where it has no wheel
    assert fused.whole(x.numel(), levels) == 0
    assert codec.encode(x) == payload
    assert torch.equal(codec.decode(payload, x.shape), decoded)


def test_a_large_payload_with_a_word_too_large_is_refused() -> None:
    shape = (fused.LEAST,)
    payload = bytearray(packed_bytes(fused.LEAST, 3))
    payload[8:16] = b"\xff" * 8
    with pytest.raises(CodecError, match="holds more"):
        Uniform(3, CLIP).decode(bytes(payload), shape)


def test_small_tensors_and_many_levels_stay_with_packing() -> None:
    assert fused.whole(fused.LEAST - 1, 3) == 0
    assert fused.whole(fused.LEAST, fused.MOST_LEVELS + 1) == 0
