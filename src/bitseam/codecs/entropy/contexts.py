"""Indices of images, each coded by the table of its group of channels and of its context (`bitseam.quant.contexts`).

The stream has wavefront after wavefront, so that all neighbours are decoded before a context is asked for. Within one,
symbols come by table, and those of one table by image, position and channel.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitseam.codecs.entropy.stream import Decoder, Runs, encode
from bitseam.quant.contexts import contexts_at, contexts_of, wavefronts


@dataclass(frozen=True)
class ContextTables:
    """tables: (groups x contexts, L) frequencies."""

    tables: tuple[tuple[int, ...], ...]
    contexts: int

    def counts(self, indices: Tensor) -> NDArray[np.int64]:
        """How often each table is asked for each symbol by indices (..., C): (groups x contexts, L)."""
        levels = len(self.tables[0])
        tables = contexts_of(indices, levels, self.contexts) + torch.from_numpy(self._first(indices.shape[-1]))
        counts = (tables * levels + indices).reshape(-1).bincount(minlength=len(self.tables) * levels)
        return counts.reshape(-1, levels).numpy()

    def encode(self, indices: Tensor) -> bytes:
        """Indices (I, T, C) uint8, some -> stream."""
        symbols, used, sizes = [], [], []
        for positions in wavefronts(indices.shape[1]):
            order, counts = self._sorted(indices, positions)
            symbols.append(indices[:, positions].numpy().reshape(-1)[order])
            used.append(np.flatnonzero(counts))
            sizes.append(counts[used[-1]])
        bounds = np.cumsum(np.concatenate([[0], *sizes]))
        return encode(np.concatenate(symbols), Runs(self.tables, bounds, np.concatenate(used)))

    def decode(self, stream: bytes, shape: tuple[int, int, int]) -> Tensor:
        """Stream -> indices (I, T, C) uint8, some. Raises CodecError as `stream.decode` does, as bounded."""
        images, tokens, channels = shape
        decoder = Decoder(stream, self.tables, images * tokens * channels)
        indices = torch.zeros(shape, dtype=torch.uint8)
        for positions in wavefronts(tokens):
            order, counts = self._sorted(indices, positions)
            front = np.empty(len(order), np.uint8)
            front[order] = decoder.take(counts)
            indices[:, positions] = torch.from_numpy(front).reshape(images, len(positions), channels)
        decoder.close()
        return indices

    def _sorted(self, indices: Tensor, positions: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the symbols at positions whose neighbours are known: their order, and how many each table has."""
        contexts = contexts_at(indices, positions, len(self.tables[0]), self.contexts).numpy()
        rows = (
            (contexts + self._first(indices.shape[-1])).reshape(-1).astype(np.uint16)
        )  # NumPy sorts these in one pass
        return np.argsort(rows, kind="stable"), np.bincount(rows, minlength=len(self.tables))

    def _first(self, channels: int) -> NDArray[np.int64]:
        """The first table of each channel: (C,)."""
        return self.contexts * group_of(channels, len(self.tables) // self.contexts)


def group_of(channels: int, groups: int) -> NDArray[np.int64]:
    """The group of each channel: (C,)."""
    return np.arange(channels) * groups // channels
