"""Floats <-> packed indices of L even levels in one pass: codec `uniform` on large tensors, in the bytes of `packing`.

Kernels are compiled for each count of levels by numba, where it is installed, the first time that they are needed: half
a second each, and as much to import numba. So small tensors, and machines without numba, stay with `packing`.

Symbols are taken by words of whole bytes, 64 bits at the most, and a word by digits of the symbols that one byte holds.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitseam.codecs.packing import digit_symbols, group, packed_bytes
from bitseam.errors import CodecError
from bitseam.quant.uniform import level_values

LEAST = 1 << 20  # elements; under it, compiling takes longer than packing some hundred tensors
MOST_LEVELS = 16  # above, a byte holds no two symbols

Floats = NDArray[np.float32]
Octets = NDArray[np.uint8]


def whole(count: int, levels: int) -> int:
    """How many of `count` elements, from the first, are coded here: whole groups, or none. The rest is `packing`'s."""
    if count < LEAST or levels > MOST_LEVELS or _numba() is None:
        return 0
    return count // _size(levels) * _size(levels)


def encode(x: Floats, levels: int, clip: float) -> bytes:
    """x (whole groups,) -> the bytes that `packing.pack` makes of `quant.uniform.to_indices`."""
    octets = np.empty(packed_bytes(len(x), levels), np.uint8)
    places = np.array([levels**symbol for symbol in range(0, _size(levels), digit_symbols(levels))], np.uint64)
    _encoder(levels)(x, np.float32((levels - 1) / (2 * clip)), places, octets)
    return octets.tobytes()


def decode(octets: Octets, levels: int, clip: float, out: Floats) -> None:
    """Bytes of whole groups -> their levels, into out. Raises CodecError for what no encoder makes."""
    together = digit_symbols(levels)
    digits = np.arange(levels**together)[:, None] // levels ** np.arange(together) % levels
    if _decoder(levels)(octets, level_values(levels, clip).numpy()[digits], out):
        raise CodecError(f"a word holds more than its {levels}-level symbols can make")


@cache
def _numba() -> Any:
    try:
        import numba  # here, for the time it takes
    except ImportError:  # no wheel for this machine, or a NumPy that is too new for it
        return None
    return numba


def _size(levels: int) -> int:
    """Symbols of a word: as many groups as fit into 64 bits."""
    return 8 // packed_bytes(group(levels), levels) * group(levels)


@cache
def _encoder(levels: int) -> Callable[..., None]:
    jit = _numba().njit(nogil=True)
    size, octets, together = _size(levels), packed_bytes(_size(levels), levels), digit_symbols(levels)
    rest = size % together
    base, half, top, zero = np.uint64(levels), np.float32(levels / 2), np.float32(levels - 1), np.float32(0)

    @jit
    def index(value: np.float32, scale: np.float32) -> np.uint64:
        place = value * scale + half  # what `to_indices` makes, to the last bit: the clamp may come after
        place = place if place > zero else zero
        return np.uint64(np.uint32(np.int32(place if place < top else top)))

    @jit
    def run(x: Floats, scale: np.float32, places: NDArray[np.uint64], out: Octets) -> None:
        full = len(places) - (rest > 0)  # known when it runs: a loop that compilers unroll is ten times slower
        for word in range(len(out) // octets):
            total = np.uint64(0)
            if rest:
                for symbol in range(rest - 1, -1, -1):
                    total = total * base + index(x[word * size + full * together + symbol], scale)
                total *= places[full]
            for part in range(full):
                digit = np.uint64(0)
                for symbol in range(together - 1, -1, -1):
                    digit = digit * base + index(x[word * size + part * together + symbol], scale)
                total += digit * places[part]
            for octet in range(octets):
                out[word * octets + octet] = np.uint8(total >> np.uint64(8 * octet))

    return run


@cache
def _decoder(levels: int) -> Callable[..., np.uint64]:
    size, octets, together = _size(levels), packed_bytes(_size(levels), levels), digit_symbols(levels)
    full, rest = divmod(size, together)
    base, last = np.uint64(levels**together), np.uint64(levels**rest)

    @_numba().njit(nogil=True)
    def run(payload: Octets, table: Floats, out: Floats) -> np.uint64:
        """table: (base, together), the levels of each digit. What is left of a word that holds too much is not 0."""
        left = np.uint64(0)
        for word in range(len(payload) // octets):
            total = np.uint64(0)
            for octet in range(octets):
                total |= np.uint64(payload[word * octets + octet]) << np.uint64(8 * octet)
            for index in range(full):
                higher = total // base
                for symbol in range(together):
                    out[word * size + index * together + symbol] = table[total - higher * base, symbol]
                total = higher
            higher = total // last
            for symbol in range(rest):
                out[word * size + full * together + symbol] = table[total - higher * last, symbol]
            left |= higher
        return left

    return run
