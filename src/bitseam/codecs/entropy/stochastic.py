"""Stochastic rounding to whole multiples of a step, at their entropy: a gradient codec for any rate, under a bit too.

    step     bfloat16          of the whole tensor; where it is 0, all is, and nothing follows
    shares   16 x 4 bits       of the classes among tokens, as powers of two; two to a byte, the lower bits first
    length   uint32            bytes of the next part
    classes  (tokens)          0 for a token without multiples, else c for multiples about 2^(c - 10) large
    symbols                    the multiples m of all tokens of class 1, then 2, ...: 2m - 1 for m > 0, else -2m

The last two are streams of `entropy.stream`; numbers are little-endian. A token is a row of the last dimension.

Tokens share one step, which makes the squared error least for the bits (reverse water-filling, Cover and Thomas, ch.
10): an image or a token whose gradient is small costs next to nothing, and one without gradient a part of a bit. But
gradients of tokens differ by powers of two, so each takes the table that fits it, of fifteen that need not travel:
those of Laplacian values of 2^(c - 10) steps' deviation. A message is decoded by itself; the sides share no state.
"""

import math
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.codecs.blocks import bfloat16_up, read_scales
from bitseam.codecs.entropy.stream import TOTAL, Runs, decode, encode, most_bytes, table_of
from bitseam.codecs.floating import little_endian
from bitseam.errors import CodecError

MAX_REACH = 127  # symbols are single bytes
CLASSES = 16
_SHARES = CLASSES // 2  # bytes
_HEAD = 2 + _SHARES + 4
_LEAST = 2**-15  # what a table gives at least, but for multiples of one


@dataclass(frozen=True)
class Multiples:
    """What a payload holds: multiples (tokens, C) int16 of the step, in tokens of classes (tokens,)."""

    step: float
    classes: NDArray[np.uint8]
    multiples: NDArray[np.int16]

    def counts(self) -> NDArray[np.int64]:
        """How often each class has each multiple from -127 to 127: (16, 255)."""
        places = self.classes[:, None] * np.int64(2 * MAX_REACH + 1) + self.multiples + MAX_REACH
        return np.bincount(places.reshape(-1), minlength=CLASSES * (2 * MAX_REACH + 1)).reshape(CLASSES, -1)


@dataclass(frozen=True)
class EntropyStochastic(Codec):
    """x -> step * (floor(x / step) or one more, at random), so that E[decode(encode(x))] = x.

    step: in root mean squares of the tensor. Of Laplacian values, 1 takes 2.1 bits and adds .16 of the variance as
    noise, 2 takes 1.4 and adds .6, 4 takes .87 and adds 1.9, 16 takes .32 and adds 10; gradients, whose tokens differ,
    take half as many bits.
    """

    codec_id: ClassVar[str] = "entropy-stochastic"
    fixed_length: ClassVar[bool] = False
    unbiased = True
    step: float = 2.0

    def __post_init__(self) -> None:
        if type(self.step) not in (int, float) or not 0.05 <= self.step <= 1000:
            raise CodecError(f"step must be a number from 0.05 to 1000, not {self.step!r}")
        object.__setattr__(self, "step", float(self.step))

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        tokens, width = _tokens(shape)
        return _HEAD + most_bytes(tokens) + most_bytes(tokens * width) if tokens else 0

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        if not x.numel():
            return b""
        rows = x.reshape(_tokens(tuple(x.shape)))
        power = float(rows.double().square().mean().sqrt()) * self.step
        # No smaller than a 127th of the largest value.
        step = bfloat16_up(torch.tensor([max(power, float(rows.abs().max()) / MAX_REACH)]), self.codec_id)
        if not step:
            return little_endian(step)
        place = rows / step
        below = place.floor()
        multiples = below.add_(torch.rand(place.shape, generator=generator) < place.sub_(below)).to(torch.int16).numpy()
        classes = _fitting(multiples)
        counts = np.bincount(classes, minlength=CLASSES)
        shares = np.where(counts, 15 - np.round(np.log2(counts.max() / np.maximum(counts, 1))).clip(max=14), 0)
        shares = shares.astype(np.uint8)
        first = encode(classes, Runs((_class_table(shares),), np.array([0, len(classes)])))
        order = multiples[_order(classes)].reshape(-1)
        symbols = np.where(order > 0, 2 * order - 1, -2 * order).astype(np.uint8)
        second = encode(symbols, _runs(classes, rows.shape[1]))
        packed = (shares[::2] | shares[1::2] << 4).tobytes()
        return b"".join([little_endian(step), packed, len(first).to_bytes(4, "little"), first, second])

    def read(self, payload: bytes, shape: tuple[int, ...]) -> Multiples:
        """The multiples in a payload, and what they were coded with. Raises CodecError as `decode` does."""
        tokens, width = _tokens(shape)
        step = float(read_scales(self._part(payload, 0, 2, "step"), self.codec_id)) if tokens else 0.0
        if not step:
            if len(payload) > 2:
                raise CodecError(f"codec {self.codec_id}: {len(payload) - 2} bytes after zeros")
            return Multiples(step, np.zeros(tokens, np.uint8), np.zeros((tokens, width), np.int16))
        packed = np.frombuffer(self._part(payload, 2, _HEAD, "head")[:_SHARES], np.uint8)
        shares = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
        end = _HEAD + int.from_bytes(payload[_HEAD - 4 : _HEAD], "little")
        first = self._part(payload, _HEAD, end, "classes")
        classes = decode(first, Runs((_class_table(shares),), np.array([0, tokens])))
        symbols = decode(payload[end:], _runs(classes, width)).astype(np.int16).reshape(-1, width)
        multiples = np.zeros((tokens, width), np.int16)
        multiples[_order(classes)] = np.where(symbols % 2, symbols + 1 >> 1, -(symbols >> 1))
        return Multiples(step, classes, multiples)

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        read = self.read(payload, shape)
        return torch.from_numpy(read.multiples).float().mul_(read.step)

    def _part(self, payload: bytes, start: int, end: int, name: str) -> bytes:
        if len(payload) < end:
            raise CodecError(f"codec {self.codec_id}: {len(payload)} bytes end within the {name}")
        return payload[start:end]


def _tokens(shape: tuple[int, ...]) -> tuple[int, int]:
    """Tokens, and values of each; none of a tensor without elements."""
    return (math.prod(shape[:-1]), math.prod(shape[-1:])) if math.prod(shape) else (0, 1)


@cache
def _tables() -> tuple[tuple[int, ...], ...]:
    """Of each class from 1 up, the frequencies of symbols.

    Rounding Laplacian values of deviation s at random gives 0 with 1 - (1 - r) / a and m with (1 - r)^2 r^(|m| - 1) /
    2a, a = sqrt(2) / s, r = e^-a. Decimals, unlike floats, have the same exponentials on every machine.
    """
    tables = []
    for exponent in range(-9, CLASSES - 10):
        a = Decimal(2).sqrt() / Decimal(2) ** exponent
        r = (-a).exp()
        chances = [(1 - r) ** 2 * r**further / (2 * a) for further in range(MAX_REACH)]
        kept = [chance for further, chance in enumerate(chances) if chance >= _LEAST or not further]
        frequencies = [frequency for chance in kept for frequency in 2 * [max(int(chance * TOTAL), 1)]]
        tables.append((TOTAL - sum(frequencies), *frequencies))
    return tuple(tables)


def _fitting(multiples: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Of each token (tokens, C), the class that takes least bits."""
    sizes = np.abs(multiples)
    width, largest = sizes.shape[1], sizes.max(axis=1)
    some, total = np.count_nonzero(sizes, axis=1), sizes.sum(axis=1, dtype=np.int64)
    best, classes = np.where(largest, np.inf, 0), np.zeros(len(sizes), np.uint8)
    for number, table in enumerate(_tables(), 1):
        zero, one, *rest = (math.log2(TOTAL / frequency) for frequency in table[::2])
        slope = (rest[-1] - one) / len(rest) if rest else 0  # frequencies fall geometrically
        bits = (width - some) * zero + some * one + (total - some) * slope
        better = (largest <= len(table) // 2) & (bits < best)
        best, classes = np.where(better, bits, best), np.where(better, np.uint8(number), classes)
    return classes


def _order(classes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The tokens that have multiples, class by class."""
    return np.argsort(classes, kind="stable")[np.count_nonzero(classes == 0) :]


def _runs(classes: NDArray[np.uint8], width: int) -> Runs:
    counts = np.bincount(classes, minlength=CLASSES)
    return Runs(_tables(), (np.cumsum(counts) - counts[0]) * width)


def _class_table(shares: NDArray[np.uint8]) -> tuple[int, ...]:
    return table_of(np.where(shares > 0, 2.0**shares, 0))
