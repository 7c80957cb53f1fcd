"""The levels of codec `uniform`, at their entropy: one table of frequencies for each group of channels.

Channel c of C falls in group c * groups // C. Payload: the indices, channel after channel, as `entropy_stream` writes
them.

Tables are learned from levels, on the side that encodes, and sent once beside the statistics of the channels. They are
static, not adapted to what was coded: a payload is then decoded by itself, in any order and again after a reconnect.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.codecs.entropy_stream import MAX_SYMBOLS, TOTAL, Runs, checked_table, decode, encode, most_bytes, table_of
from bitseam.errors import CodecError
from bitseam.quant.uniform import check_grid, level_values, to_indices

MAX_GROUPS = 4096
CHUNK = 1 << 16  # elements turned from token order to channel order at a time: they stay in the cache


@dataclass(frozen=True)
class EntropyUniform(Codec):
    """`levels` (256 at the most) evenly spaced from -clip to clip, as codec `uniform` has them.

    tables: (groups, L) frequencies, each row a sum of 65536; none for equal ones, which the recipe and the handshake
    have. Whoever has seen levels puts in better ones with `learned` or `with_tables`.
    """

    codec_id: ClassVar[str] = "entropy-uniform"
    fixed_length: ClassVar[bool] = False
    levels: int
    clip: float
    groups: int = 16
    tables: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        check_grid(self.levels, self.clip)
        if self.levels > MAX_SYMBOLS:
            raise CodecError(f"codec {self.codec_id} takes at most {MAX_SYMBOLS} levels, not {self.levels}")
        if type(self.groups) is not int or not 1 <= self.groups <= MAX_GROUPS:
            raise CodecError(f"groups must be a whole number from 1 to {MAX_GROUPS}, not {self.groups!r}")
        object.__setattr__(self, "clip", float(self.clip))
        object.__setattr__(self, "tables", _checked(self.tables, self.groups, self.levels))

    def table_bytes(self) -> bytes:
        """The tables as they travel: uint16 little-endian (groups, L)."""
        return np.array(self._rows(), "<u2").tobytes()

    def with_tables(self, raw: bytes) -> "EntropyUniform":
        """The same codec with tables that `table_bytes` wrote. Raises CodecError for what no table is."""
        due = 2 * self.groups * self.levels
        if len(raw) != due:
            raise CodecError(f"tables of {self.groups} groups of {self.levels} levels take {due} bytes, not {len(raw)}")
        rows = np.frombuffer(raw, "<u2").reshape(self.groups, self.levels).tolist()
        return replace(self, tables=tuple(map(tuple, rows)))

    def counts(self, x: Tensor) -> NDArray[np.int64]:
        """How often each group has each level in x (..., C): (groups, L)."""
        indices = self._by_channel(x.detach().to("cpu", torch.float32))
        groups = np.split(indices, self._bounds(len(indices))[1:-1])
        return np.stack([np.bincount(group.reshape(-1), minlength=self.levels) for group in groups])

    def learned(self, counts: NDArray) -> "EntropyUniform":
        """The same codec with the tables that fit counts (groups, L) best."""
        return replace(self, tables=tuple(map(table_of, counts)))

    def group_of(self, channels: int) -> NDArray[np.int64]:
        """The group of each channel: (C,)."""
        return np.arange(channels) * self.groups // channels

    def bits(self, counts: NDArray) -> float:
        """What indices with these counts (groups, L) take, in bits, without the ends of lanes."""
        return float((counts * self.symbol_bits()).sum())

    def prices(self, channels: int) -> Tensor:
        """What each level takes in each channel, in bits: float32 (C, L)."""
        return torch.from_numpy(self.symbol_bits()[self.group_of(channels)]).float()

    def symbol_bits(self) -> NDArray[np.float64]:
        """What each level takes in each group, in bits: (groups, L)."""
        return math.log2(TOTAL) - np.log2(np.array(self._rows()))

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        return most_bytes(math.prod(shape))

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        indices = self._by_channel(x)
        return encode(indices.reshape(-1), self._runs(*indices.shape))

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        channels = shape[-1] if shape else 1
        tokens = math.prod(shape) // max(channels, 1)
        indices = decode(payload, self._runs(channels, tokens)).reshape(channels, tokens)
        table, out = level_values(self.levels, self.clip).numpy(), np.empty((tokens, channels), np.float32)
        for part in _parts(tokens, channels):
            out[part] = table.take(indices[:, part].T)
        return torch.from_numpy(out)

    def _by_channel(self, x: Tensor) -> NDArray[np.uint8]:
        """x (..., C) -> indices (C, tokens)."""
        channels = x.shape[-1] if x.ndim else 1
        tokens = x.numel() // max(channels, 1)
        rows, indices = x.reshape(tokens, channels), np.empty((channels, tokens), np.uint8)
        for part in _parts(tokens, channels):
            indices[:, part] = to_indices(rows[part], self.levels, self.clip).numpy().T
        return indices

    def _runs(self, channels: int, tokens: int) -> Runs:
        return Runs(self._rows(), self._bounds(channels) * tokens)

    def _bounds(self, channels: int) -> NDArray[np.int64]:
        """The first channel of each group, and the end of all."""
        return -(-np.arange(self.groups + 1) * channels // self.groups)

    def _rows(self) -> tuple[tuple[int, ...], ...]:
        if self.tables:
            return self.tables
        share, rest = divmod(TOTAL, self.levels)
        return (tuple(share + (level < rest) for level in range(self.levels)),) * self.groups


def _parts(tokens: int, channels: int) -> list[slice]:
    size = max(CHUNK // max(channels, 1), 1)
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _checked(tables: object, groups: int, levels: int) -> tuple[tuple[int, ...], ...]:
    """Tables as tuples, also where JSON made lists of them. Raises CodecError for what no table is."""
    if not isinstance(tables, list | tuple) or not all(isinstance(row, list | tuple) for row in tables):
        raise CodecError("tables must be rows of frequencies")
    if not tables:
        return ()
    if len(tables) != groups or any(len(row) != levels for row in tables):
        raise CodecError(f"tables must be {groups} rows of {levels} frequencies")
    return tuple(checked_table(row, f"table {number}") for number, row in enumerate(tables))
