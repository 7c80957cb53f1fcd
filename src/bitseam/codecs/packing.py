"""Whole numbers in [0, L) <-> bytes, at a fixed rate, for any L.

    L a power of two    b = log2 L bits each, little-endian within and across bytes
    any other L         mixed radix: S symbols, the first as the lowest digit, make a 64-bit little-endian word, S the
                        most that fit (L^S <= 2^64); a shorter last word is cut to the bytes its digits can need

L = 1 takes no bytes. Each sequence of symbols has one encoding: `unpack` refuses every other.
"""

import math

import numpy as np
from numpy.typing import NDArray

from bitseam.errors import CodecError

MAX_LEVELS = 2**32


def packed_bytes(count: int, levels: int) -> int:
    """Length of `count` packed symbols. Raises CodecError for levels out of range."""
    _check_levels(levels)
    if _is_power_of_two(levels):
        return -(-count * _bits(levels) // 8)
    words, rest = divmod(count, group(levels))
    return 8 * words + _tail_bytes(rest, levels)


def group(levels: int) -> int:
    """Symbols that fill whole bytes: packing a multiple of it at a time gives the same bytes as packing at once."""
    _check_levels(levels)
    if _is_power_of_two(levels):
        return 8 // math.gcd(8, _bits(levels))
    return int(64 / math.log2(levels))


def pack(indices: NDArray[np.integer], levels: int) -> bytes:
    """Pack an integer array of any shape, in C order. Raises CodecError for an index outside [0, levels)."""
    _check_levels(levels)
    flat = indices.reshape(-1)
    if flat.size and (flat.max() >= levels or flat.min() < 0):
        wrong = int(np.argmax((flat >= levels) | (flat < 0)))
        raise CodecError(f"index {flat[wrong]} at position {wrong} is not in [0, {levels})")
    if _is_power_of_two(levels):
        return _pack_bits(flat, _bits(levels))[: packed_bytes(flat.size, levels)].tobytes()
    return _pack_words(flat, levels)[: packed_bytes(flat.size, levels)]


def unpack(payload: bytes, count: int, levels: int) -> NDArray[np.unsignedinteger]:
    """The `count` symbols packed in the payload: uint8, uint16 or uint32, the smallest that holds L - 1.

    Raises CodecError for a payload of another length, a symbol that is not under L, or padding that is not zero.
    """
    expected = packed_bytes(count, levels)
    if len(payload) != expected:
        raise CodecError(f"{count} symbols of {levels} levels take {expected} bytes, not the {len(payload)} received")
    octets = np.frombuffer(payload, np.uint8)
    if _is_power_of_two(levels):
        padding = 8 * expected - count * _bits(levels)
        if padding and octets[-1] >> (8 - padding):
            raise CodecError("padding after the last symbol is not zero")
        return _unpack_bits(octets, count, _bits(levels))
    return _unpack_words(octets, count, levels)


def _check_levels(levels: int) -> None:
    if not 1 <= levels <= MAX_LEVELS:
        raise CodecError(f"levels must be from 1 to {MAX_LEVELS}, not {levels}")


def _is_power_of_two(levels: int) -> bool:
    return levels & (levels - 1) == 0


def _bits(levels: int) -> int:
    return (levels - 1).bit_length()


def _symbol_type(levels: int) -> np.dtype[np.unsignedinteger]:
    return np.min_scalar_type(levels - 1)


def _padded(flat: NDArray, multiple: int) -> NDArray:
    return np.pad(flat, (0, -flat.size % multiple)) if flat.size % multiple else flat


def _pack_bits(flat: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return flat.astype(np.uint8, copy=False)
    if bits in (1, 2, 4):
        # Symbols of one byte, read as one little-endian word, times what brings each to its place in the top byte.
        size = 8 // bits
        words = np.ascontiguousarray(_padded(flat.astype(np.uint8, copy=False), size)).view(f"<u{size}")
        gather = sum(1 << (8 * (size - 1) - (8 - bits) * symbol) for symbol in range(size))
        return (words * words.dtype.type(gather) >> words.dtype.type(8 * (size - 1))).astype(np.uint8)
    if bits == 0:
        return np.empty(0, np.uint8)
    # Eight symbols (fewer where the width is even) fill whole bytes; each byte gathers the parts of symbols in it.
    size = 8 // math.gcd(8, bits)
    columns = _padded(flat.astype(np.uint32, copy=False), size).reshape(-1, size)
    out = np.zeros((len(columns), size * bits // 8), np.uint8)
    for byte, symbol, shift in _overlaps(size, bits):
        column = columns[:, symbol]
        out[:, byte] |= (column << shift if shift > 0 else column >> -shift).astype(np.uint8)
    return out.reshape(-1)


def _unpack_bits(octets: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.unsignedinteger]:
    if bits == 0:
        return np.zeros(count, np.uint8)
    if bits in (1, 2, 4, 8):
        symbols, width = octets.copy(), 8  # the result is the caller's to write in
        while width > bits:
            width //= 2
            wide = symbols.astype("<u2")
            symbols = ((wide | wide << (8 - width)) & ((1 << width) - 1) * 0x0101).view(np.uint8)
        return symbols[:count]
    size = 8 // math.gcd(8, bits)
    columns = _padded(octets, size * bits // 8).reshape(-1, size * bits // 8).astype(np.uint32)
    out = np.zeros((len(columns), size), np.uint32)
    for byte, symbol, shift in _overlaps(size, bits):
        out[:, symbol] |= columns[:, byte] >> shift if shift > 0 else columns[:, byte] << -shift
    out &= np.uint32((1 << bits) - 1)
    return out.reshape(-1)[:count].astype(_symbol_type(1 << bits), copy=False)


def _overlaps(size: int, bits: int) -> list[tuple[int, int, int]]:
    """(byte, symbol, left shift of the symbol into the byte) for each overlap among `size` symbols of `bits` bits."""
    return [
        (byte, symbol, symbol * bits - byte * 8)
        for byte in range(size * bits // 8)
        for symbol in range(byte * 8 // bits, (byte * 8 + 7) // bits + 1)
    ]


def _tail_bytes(symbols: int, levels: int) -> int:
    return -(-(levels**symbols - 1).bit_length() // 8)


def digit_symbols(levels: int) -> int:
    """Symbols handled together as one small digit, levels**symbols <= 256, on the way to and from a word."""
    return max(1, int(math.log(256.5, levels)))


def _pack_words(flat: NDArray[np.integer], levels: int) -> bytes:
    size, together = group(levels), digit_symbols(levels)
    rows = np.pad(_padded(flat, size).reshape(-1, size), ((0, 0), (0, -size % together)))
    symbols = rows.reshape(len(rows), -(-size // together), together)
    digits = _horner(symbols, levels, np.uint8) if together > 1 else rows
    return _horner(digits, levels**together, np.uint64).astype("<u8", copy=False).tobytes()


def _horner(digits: NDArray[np.integer], base: int, dtype: type[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Numbers in the base, of the digits along the last axis, lowest first."""
    total = np.zeros(digits.shape[:-1], dtype)
    for place in reversed(range(digits.shape[-1])):
        total *= dtype(base)
        total += digits[..., place].astype(dtype, copy=False)
    return total


def _unpack_words(octets: NDArray[np.uint8], count: int, levels: int) -> NDArray[np.unsignedinteger]:
    size, together = group(levels), digit_symbols(levels)
    words = _padded(octets, 8).view("<u8").astype(np.uint64)
    digits = np.empty((len(words), -(-size // together)), _symbol_type(levels**together))
    for place in range(digits.shape[1]):
        words, digits[:, place] = np.divmod(words, np.uint64(levels**together))
    if together > 1:
        table = np.arange(levels**together)[:, None] // levels ** np.arange(together) % levels
        digits = table.astype(np.uint8).take(digits, axis=0).reshape(len(digits), digits.shape[1] * together)
    flat = digits[:, :size].reshape(-1)
    if words.any() or digits[:, size:].any() or flat[count:].any():
        raise CodecError(f"a word holds more than its {levels}-level symbols can make")
    return flat[:count]
