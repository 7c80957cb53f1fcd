"""SplitFC's adaptive feature-wise quantization (arXiv 2307.10805): each feature has the levels that its range earns.

A matrix (T, D), the last two dimensions, is coded by itself, so that an image's code depends on that image alone. Its
payload, of a length that the shape decides:

    8 bytes      the matrix's least and largest value, float32, little-endian
    5 D bits     which of the 32 counts of MENU each feature has as its levels; one level is its mean alone
    stage one    the means of those features, then the least and then the largest values of all others, as indices of
                 `endpoints` levels from the matrix's least to its largest
    stage two    the others' entries, as indices of levels between their two ends of stage one; features of one count
                 together, (T, features), counts ascending
    zeros        what is left of the budget, hardly more than one feature's next count would take
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.codecs.packing import group, pack, packed_bytes, unpack
from bitseam.errors import CodecError
from bitseam.quant.uniform import check_grid

Floats = NDArray[np.float64]

# The most levels that pack at each of 32 rates up to two bytes. Each next one saves less squared error per bit.
MENU = (
    *(1, 2, 3, 4, 5, 6, 8, 9, 10, 13, 16, 19, 23, 30, 32, 40, 56, 64, 84, 128, 138, 256),
    *(512, 565, 1024, 1625, 2048, 4096, 7131, 16384, 32768, 65536),
)
ENDS = np.dtype("<f4")


@dataclass(frozen=True)
class SplitFC(Codec):
    """At most `bits` a value, headers and all, shared among the features so that the squared error is least.

    T entries of a range r in L levels cost T r^2 / 12 (L - 1)^2 of squared error; their mean alone, their deviation
    from it. Whichever feature saves the most per bit has its next count first. The paper bounds both costs by the worst
    case and rounds a closed form; here the counts are sent, so that the two sides need not compute alike. A matrix too
    small for the means of its features takes their bytes even so, the one case over `bits`.
    """

    codec_id: ClassVar[str] = "splitfc"
    bits: float
    endpoints: int = 256  # the paper takes 200

    def __post_init__(self) -> None:
        check_grid(self.endpoints, 1.0)
        if type(self.bits) not in (int, float) or not 0.1 <= self.bits <= 16:
            raise CodecError(f"bits must be a number from 0.1 to 16, not {self.bits!r}")
        object.__setattr__(self, "bits", float(self.bits))  # 2 and 2.0 are one codec, and one text in the handshake

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        matrices, tokens, features = _matrices(shape)
        return matrices * self._matrix_bytes(tokens, features)

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        matrices = x.numpy().reshape(_matrices(tuple(x.shape)))
        return b"".join(self._encode_matrix(matrix) for matrix in matrices)

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        out = np.empty(_matrices(shape), np.float32)
        size = len(payload) // max(len(out), 1)
        for i, matrix in enumerate(out):
            self._decode_matrix(payload[i * size : (i + 1) * size], matrix)
        return torch.from_numpy(out)

    def _matrix_bytes(self, tokens: int, features: int) -> int:
        return max(int(self.bits * tokens * features / 8), self._used(tokens, [features]))

    def _used(self, tokens: int, taken: list[int]) -> int:
        """Bytes before the zeros, where so many features took each item of the menu."""
        features = sum(taken)
        ends = packed_bytes(2 * features - taken[0], self.endpoints)
        entries = sum(packed_bytes(tokens * count, MENU[k]) for k, count in enumerate(taken))
        return 2 * ENDS.itemsize + packed_bytes(features, len(MENU)) + ends + entries

    def _encode_matrix(self, matrix: NDArray[np.float32]) -> bytes:
        extremes = np.array([matrix.min(), matrix.max()], ENDS)
        grid, x = self._grid(extremes), matrix.astype(np.float64)
        step = _positive(grid[-1] - grid[0]) / (self.endpoints - 1)
        mean, low, high = (
            round_to((of - grid[0]) / step).clip(0, self.endpoints - 1).astype(np.int64)
            for round_to, of in ((np.rint, x.mean(0)), (np.floor, x.min(0)), (np.ceil, x.max(0)))
        )
        item = self._allocate(x, grid[mean], grid[high] - grid[low])
        rest = item > 0
        ends = np.concatenate([mean[~rest], low[rest], high[rest]])
        parts = [extremes.tobytes(), pack(item, len(MENU)), pack(ends, self.endpoints)]
        for k in np.unique(item[rest]):
            mine, steps = item == k, MENU[k] - 1
            place = (x[:, mine] - grid[low[mine]]) * (steps / _positive(grid[high[mine]] - grid[low[mine]]))
            parts.append(pack(np.rint(place).clip(0, steps).astype(np.uint16), MENU[k]))
        return b"".join(parts).ljust(self._matrix_bytes(*x.shape), b"\0")

    def _allocate(self, x: Floats, mean: Floats, span: Floats) -> NDArray[np.uint8]:
        """The item of the menu (D,) of each feature of x (T, D); mean and span (D,) are as stage one gives them."""
        (tokens, features), items = x.shape, np.arange(len(MENU))
        error = np.square(span)[:, None] * tokens / 12 / np.square(np.maximum(np.array(MENU) - 1, 1))
        error[:, 0] = np.square(x - mean).sum(axis=0)
        bits = tokens * np.array([_rate(levels) for levels in MENU])
        bits[1:] += _rate(self.endpoints)  # two ends instead of a mean
        # A feature leaves its mean for the item that saves the most per bit; what the next ones save falls from there.
        first = 1 + np.argmax((error[:, :1] - error[:, 1:]) / bits[1:], axis=1)[:, None]
        before = np.where(items == first, 0, items - 1)
        saved = np.take_along_axis(error, before, axis=1) - error
        cost = bits - bits[before]
        worthy = np.take_along_axis(saved, first, axis=1) > 0
        feature, to = np.nonzero((items >= first) & worthy)
        order = np.argsort(-saved[feature, to] / cost[feature, to], kind="stable")
        feature, to = feature[order], to[order]
        size = self._matrix_bytes(tokens, features)
        room = 8 * (size - self._used(tokens, [features]))
        count = int(np.searchsorted(np.cumsum(cost[feature, to]), room, side="right"))
        item = np.zeros(features, np.uint8)
        np.maximum.at(item, feature[:count], to[:count].astype(np.uint8))
        while self._used(tokens, np.bincount(item, minlength=1).tolist()) > size:  # groups end on whole bytes
            count -= 1
            item[feature[count]] = before[feature[count], to[count]]
        return item

    def _decode_matrix(self, payload: bytes, out: NDArray[np.float32]) -> None:
        """Write the values into out (T, D)."""
        tokens, features = out.shape
        extremes = np.frombuffer(payload[: 2 * ENDS.itemsize], ENDS)
        if not np.isfinite(extremes).all() or extremes[0] > extremes[1]:
            raise CodecError("codec splitfc: the ends of a matrix are out of order, NaN or infinite")
        reader = _Reader(payload, 2 * ENDS.itemsize)
        item = reader.take(features, len(MENU))
        if self._used(tokens, np.bincount(item, minlength=1).tolist()) > len(payload):
            raise CodecError("codec splitfc: a matrix's levels take more than its bytes")
        rest, grid = item > 0, self._grid(extremes)
        ends = reader.take(features + int(rest.sum()), self.endpoints)
        mean, low, high = np.split(grid[ends], [features - rest.sum(), features])
        if (low > high).any():
            raise CodecError("codec splitfc: a feature's largest value is under its least")
        out[:, ~rest] = mean
        for k in np.unique(item[rest]):
            mine = item[rest] == k
            index = reader.take(tokens * int(mine.sum()), MENU[k]).reshape(tokens, -1)
            out[:, item == k] = low[mine] + index * ((high[mine] - low[mine]) / (MENU[k] - 1))
        if any(payload[reader.at :]):
            raise CodecError("codec splitfc: padding after a matrix is not zero")

    def _grid(self, extremes: NDArray[np.float32]) -> Floats:
        """Stage one's levels, ascending; float64 holds the range of any two floats."""
        least, largest = float(extremes[0]), float(extremes[1])
        return np.asarray(least + np.arange(self.endpoints) * ((largest - least) / (self.endpoints - 1)))


@dataclass
class _Reader:
    payload: bytes
    at: int

    def take(self, count: int, levels: int) -> NDArray[np.unsignedinteger]:
        """The next `count` indices."""
        start, self.at = self.at, self.at + packed_bytes(count, levels)
        return unpack(self.payload[start : self.at], count, levels)


def _matrices(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Shape (...) as (matrices, T, D); what holds nothing is no matrix."""
    tokens, features = (1, 1, *shape)[-2:]
    if 0 in shape:
        return 0, tokens, features
    return math.prod(shape) // (tokens * features), tokens, features


def _rate(levels: int) -> float:
    """Bits an index."""
    return packed_bytes(8 * group(levels), levels) / group(levels)


def _positive(widths: Floats) -> Floats:
    """Widths to divide by: what has none divides by one."""
    return np.where(widths > 0, widths, 1)
