"""The levels of codec `uniform`, at their entropy: one table of frequencies for each group of channels and context.

Channel c of C falls in group c * groups // C. Payload: the indices as `entropy.stream` writes them. Those of images
(I, T, C) that have several contexts are in the order of `contexts`. All others come channel after channel, by
the tables of the middle context.

Tables are learned from levels, on the side that encodes, and sent once beside the statistics of the channels. They are
static, not adapted to what was coded: a payload is then decoded by itself, in any order and again after a reconnect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitseam.codecs.base import Codec
from bitseam.codecs.entropy.contexts import ContextTables, group_of
from bitseam.codecs.entropy.stream import (
    MAX_SYMBOLS,
    TOTAL,
    Runs,
    checked_table,
    decode,
    encode,
    most_bytes,
    table_of,
)
from bitseam.errors import CodecError
from bitseam.quant.contexts import check_contexts
from bitseam.quant.uniform import check_grid, from_indices, level_values, to_indices

MAX_GROUPS = 4096  # times contexts
_SHARED = 4  # counts of its group that each context starts from: few contexts are seen often
CHUNK = 1 << 16  # elements turned from token order to channel order at a time: they stay in the cache


@dataclass(frozen=True)
class EntropyUniform(Codec):
    """`levels` (256 at the most) evenly spaced from -clip to clip, as codec `uniform` has them.

    contexts: an odd number, see `bitseam.quant.contexts`. tables: R = groups x contexts rows of L frequencies, each a
    sum of 65536, those of a group's contexts side by side; none for equal ones, which the recipe and the handshake
    have. Whoever has seen levels puts in better ones with `learned` or `with_tables`.
    """

    codec_id: ClassVar[str] = "entropy-uniform"
    fixed_length: ClassVar[bool] = False
    levels: int
    clip: float
    groups: int = 16
    tables: tuple[tuple[int, ...], ...] = ()
    contexts: int = 1

    def __post_init__(self) -> None:
        check_grid(self.levels, self.clip)
        if self.levels > MAX_SYMBOLS:
            raise CodecError(f"codec {self.codec_id} takes at most {MAX_SYMBOLS} levels, not {self.levels}")
        if type(self.groups) is not int or not 1 <= self.groups <= MAX_GROUPS:
            raise CodecError(f"groups must be a whole number from 1 to {MAX_GROUPS}, not {self.groups!r}")
        check_contexts(self.contexts)
        if self.groups * self.contexts > MAX_GROUPS:
            raise CodecError(f"{self.groups} groups of {self.contexts} contexts: at most {MAX_GROUPS} tables in all")
        object.__setattr__(self, "clip", float(self.clip))
        object.__setattr__(self, "tables", _checked(self.tables, self.groups * self.contexts, self.levels))

    def table_bytes(self) -> bytes:
        """The tables as they travel: uint16 little-endian (R, L)."""
        return np.array(self._rows(), "<u2").tobytes()

    def with_tables(self, raw: bytes) -> "EntropyUniform":
        """The same codec with tables that `table_bytes` wrote. Raises CodecError for what no table is."""
        count = self.groups * self.contexts
        due = 2 * count * self.levels
        if len(raw) != due:
            raise CodecError(f"{count} tables of {self.levels} levels take {due} bytes, not {len(raw)}")
        rows = np.frombuffer(raw, "<u2").reshape(count, self.levels).tolist()
        return replace(self, tables=tuple(map(tuple, rows)))

    def counts(self, x: Tensor) -> NDArray[np.int64]:
        """How often each table is asked for each level of x (..., C): (R, L)."""
        x = x.detach().to("cpu", torch.float32)
        if self._in_contexts(x.shape):
            return self._by_context().counts(to_indices(x, self.levels, self.clip))
        indices = self._by_channel(x)
        counts = np.zeros((self.groups, self.contexts, self.levels), np.int64)
        for group, part in enumerate(np.split(indices, self._bounds(len(indices))[1:-1])):
            counts[group, self.contexts // 2] = np.bincount(part.reshape(-1), minlength=self.levels)
        return counts.reshape(-1, self.levels)

    def learned(self, counts: NDArray) -> "EntropyUniform":
        """The same codec with the tables that fit counts (R, L) best."""
        if self.contexts == 1:
            return replace(self, tables=tuple(map(table_of, counts)))
        grouped = counts.reshape(self.groups, self.contexts, self.levels)
        pooled = grouped.sum(axis=1) + 0.5
        unseen = _SHARED * pooled / pooled.sum(axis=1, keepdims=True)
        pairs = zip(grouped, unseen, strict=True)
        return replace(self, tables=tuple(table_of(row, more) for rows, more in pairs for row in rows))

    def group_of(self, channels: int) -> NDArray[np.int64]:
        """The group of each channel: (C,)."""
        return group_of(channels, self.groups)

    def bits(self, counts: NDArray) -> float:
        """What indices with these counts (R, L) take, in bits, without the ends of lanes."""
        return float((counts * self.symbol_bits()).sum())

    def prices(self, channels: int) -> Tensor:
        """What each level takes in each context of each channel, in bits: float32 (C, contexts, L)."""
        bits = self.symbol_bits().reshape(self.groups, self.contexts, self.levels)
        return torch.from_numpy(bits[self.group_of(channels)]).float()

    def symbol_bits(self) -> NDArray[np.float64]:
        """What each level takes by each table, in bits: (R, L)."""
        return math.log2(TOTAL) - np.log2(np.array(self._rows()))

    def _payload_bytes(self, shape: tuple[int, ...]) -> int:
        return most_bytes(math.prod(shape))

    def _encode(self, x: Tensor, generator: torch.Generator | None) -> bytes:
        if self._in_contexts(x.shape):
            return self._by_context().encode(to_indices(x, self.levels, self.clip))
        indices = self._by_channel(x)
        return encode(indices.reshape(-1), self._runs(*indices.shape))

    def _decode(self, payload: bytes, shape: tuple[int, ...]) -> Tensor:
        channels = shape[-1] if shape else 1
        if self._in_contexts(shape):
            images, tokens, _ = shape
            decoded = self._by_context().decode(payload, (images, tokens, channels))
            return from_indices(decoded, self.levels, self.clip)
        tokens = math.prod(shape) // max(channels, 1)
        indices = decode(payload, self._runs(channels, tokens)).reshape(channels, tokens)
        table, out = level_values(self.levels, self.clip).numpy(), np.empty((tokens, channels), np.float32)
        for part in _parts(tokens, channels):
            out[part] = table.take(indices[:, part].T)
        return torch.from_numpy(out)

    def _in_contexts(self, shape: Sequence[int]) -> bool:
        return self.contexts > 1 and len(shape) == 3 and math.prod(shape) > 0

    def _by_context(self) -> ContextTables:
        return ContextTables(self._rows(), self.contexts)

    def _by_channel(self, x: Tensor) -> NDArray[np.uint8]:
        """x (..., C) -> indices (C, tokens)."""
        channels = x.shape[-1] if x.ndim else 1
        tokens = x.numel() // max(channels, 1)
        rows, indices = x.reshape(tokens, channels), np.empty((channels, tokens), np.uint8)
        for part in _parts(tokens, channels):
            indices[:, part] = to_indices(rows[part], self.levels, self.clip).numpy().T
        return indices

    def _runs(self, channels: int, tokens: int) -> Runs:
        return Runs(self._rows()[self.contexts // 2 :: self.contexts], self._bounds(channels) * tokens)

    def _bounds(self, channels: int) -> NDArray[np.int64]:
        """The first channel of each group, and the end of all."""
        return -(-np.arange(self.groups + 1) * channels // self.groups)

    def _rows(self) -> tuple[tuple[int, ...], ...]:
        if self.tables:
            return self.tables
        share, rest = divmod(TOTAL, self.levels)
        return (tuple(share + (level < rest) for level in range(self.levels)),) * (self.groups * self.contexts)


def _parts(tokens: int, channels: int) -> list[slice]:
    size = max(CHUNK // max(channels, 1), 1)
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _checked(tables: object, count: int, levels: int) -> tuple[tuple[int, ...], ...]:
    """Tables as tuples, also where JSON made lists of them. Raises CodecError for what no table is."""
    if not isinstance(tables, list | tuple) or not all(isinstance(row, list | tuple) for row in tables):
        raise CodecError("tables must be rows of frequencies")
    if not tables:
        return ()
    if len(tables) != count or any(len(row) != levels for row in tables):
        raise CodecError(f"tables must be {count} rows of {levels} frequencies")
    return tuple(checked_table(row, f"table {number}") for number, row in enumerate(tables))
