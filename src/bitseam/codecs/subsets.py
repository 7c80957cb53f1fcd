"""Which k of C positions: subsets of one size <-> bytes, of a length that depends on k and C alone.

Of two ways the smaller is taken:

    bitmap       a bit for each position
    Elias-Fano   positions ascending; the low l > 0 bits of each as they are, the rest in unary: bit (p >> l) + i is set
                 for the i-th position p. That is k l + k + ((C - 1) >> l) bits, with the best l about 2 + log2(C / k)
                 a position, against log2 C for plain indices and 1.44 + log2(C / k) for the least there can be
                 (Elias, "Efficient storage and retrieval by content and address of static files", 1974)

The unary codes (or the bitmaps) of all subsets come first, then all low bits.

Each collection of subsets has one encoding: `unpack_subsets` refuses every other.
"""

import numpy as np
from numpy.typing import NDArray

from bitseam.codecs.packing import pack, packed_bytes, unpack
from bitseam.errors import CodecError


def subsets_bytes(count: int, chosen: int, width: int) -> int:
    """Length of `count` packed subsets of `chosen` of `width` positions, 0 <= chosen <= width."""
    unary, low = _layout(chosen, width)
    return packed_bytes(count * unary, 2) + packed_bytes(count * chosen, 2**low)


def pack_subsets(mask: NDArray[np.bool_], chosen: int) -> bytes:
    """Pack mask (count, width), with `chosen` positions set in each row."""
    count, width = mask.shape
    unary, low = _layout(chosen, width)
    if low == 0:
        return pack(mask.view(np.uint8), 2)
    positions = np.nonzero(mask)[1].reshape(count, chosen)
    bits = np.zeros((count, unary), np.uint8)
    np.put_along_axis(bits, (positions >> low) + np.arange(chosen), 1, axis=1)
    return pack(bits, 2) + pack(positions & (1 << low) - 1, 2**low)


def unpack_subsets(payload: bytes, count: int, chosen: int, width: int) -> NDArray[np.int64]:
    """Positions (count, chosen), ascending in each row. Raises CodecError for bytes that `pack_subsets` never makes."""
    unary, low = _layout(chosen, width)
    end = packed_bytes(count * unary, 2)
    bits = unpack(payload[:end], count * unary, 2).reshape(count, unary)
    if (np.count_nonzero(bits, axis=1) != chosen).any():
        raise CodecError(f"a set of positions in the payload is not of {chosen}")
    places = np.nonzero(bits)[1].reshape(count, chosen)
    if low == 0:
        return places
    rest = unpack(payload[end:], count * chosen, 2**low).reshape(count, chosen)
    positions = (places - np.arange(chosen) << low) + rest
    if (positions >= width).any() or (np.diff(positions, axis=1) <= 0).any():
        raise CodecError(f"positions in the payload do not ascend, or are not under {width}")
    return positions


def _layout(chosen: int, width: int) -> tuple[int, int]:
    """Bits of a subset's unary code, and low bits of a position; a bitmap has none of those."""
    fano = [(chosen + (width - 1 >> low), low) for low in range(1, width.bit_length())]
    return min([(width, 0), *fano], key=lambda way: way[0] + chosen * way[1])
