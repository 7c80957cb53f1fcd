"""Symbols <-> bytes at their entropy: range asymmetric numeral systems (Duda, arXiv 1311.2540), with given tables.

The symbols come as runs, one after the other, each with a table: frequencies f, at least 1 a symbol, that sum to 65536.
They are cut into lanes of 16384 symbols, across runs; lanes are coded alone, so that NumPy takes them side by side. All
integers are little-endian.

    lengths  uint16 (lanes - 1)   words of each lane but the last, which takes what is left
    words    uint32 of each lane  a lane starts from x = 0 and takes its symbols from the last to the first: with
                                  p = 256 f and c = 256 (the sum of f over smaller symbols),
                                      if x >= 2^40 p:  write the low word of x, x >>= 32
                                      x = 2^24 (x // p) + c + x % p
                                  then writes the low and high word of x, without zero words at the end

That is the format of constriction's `AnsCoder` at its 24 bits of precision; `encode` and `decode` run on it where it is
installed, and on NumPy otherwise. Decoding must end at x = 0 without a word left, so each sequence of symbols has one
encoding, and what is no encoding is refused.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitseam.errors import CodecError

try:
    import constriction
except ImportError:  # no wheel for this machine
    constriction = None

TOTAL = 2**16  # of the frequencies of a table
LANE = 2**14  # symbols: its length and its last word, filled by half, are four bytes in 4 KB at 2 bits a symbol
MAX_SYMBOLS = 256

_LOW, _QUANTILE, _SHIFT = np.uint64(32), np.uint64(24), np.uint64(8)
_WORD = np.uint64(2**32)


@dataclass(frozen=True)
class Runs:
    """tables: of any lengths; bounds: (R + 1,), run r holds the symbols [bounds[r], bounds[r + 1]).

    used: which table each run has (R,); by default run r has table r.
    """

    tables: tuple[tuple[int, ...], ...]
    bounds: NDArray[np.int64]
    used: NDArray[np.int64] | None = None

    @property
    def count(self) -> int:
        return int(self.bounds[-1])

    def lanes(self) -> int:
        return -(-self.count // LANE)

    def table(self, runs: Any) -> Any:
        """The number of the table of a run, or of several."""
        return runs if self.used is None else self.used[runs]

    def within(self, lane: int) -> list[tuple[int, int, int]]:
        """(table, start, stop) of each piece of a run in a lane, in order."""
        start, stop = lane * LANE, min((lane + 1) * LANE, self.count)
        first, last = np.searchsorted(self.bounds, (start, stop - 1), "right") - 1
        pieces = ((r, max(self.bounds[r], start), min(self.bounds[r + 1], stop)) for r in range(first, last + 1))
        return [(int(self.table(run)), int(a), int(b)) for run, a, b in pieces if a < b]


def table_of(counts: NDArray[Any], unseen: float | NDArray[np.float64] = 0.5) -> tuple[int, ...]:
    """The table that fits counts (L,) best, with some more for what was not seen yet: half a count by default
    (Krichevsky and Trofimov, 1981)."""
    shares = (counts + unseen) / (counts + unseen).sum()
    table = np.floor(shares * (TOTAL - len(counts))).astype(np.int64) + 1
    table[table.argmax()] += TOTAL - table.sum()  # where it matters least
    return tuple(table.tolist())


def checked_table(row: Sequence[int], name: str = "the table") -> tuple[int, ...]:
    """The row as a table. Raises CodecError for what no table is."""
    if any(type(frequency) is not int or frequency < 1 for frequency in row) or sum(row) != TOTAL:
        raise CodecError(f"{name}: frequencies must be whole numbers from 1 that sum to {TOTAL}")
    return tuple(row)


def most_bytes(count: int) -> int:
    """The longest stream of so many symbols: no symbol takes more than 16 bits, and a lane ends in two words."""
    lanes = -(-count // LANE)
    return 2 * max(lanes - 1, 0) + 2 * count + 12 * lanes


def encode(symbols: NDArray[np.uint8], runs: Runs) -> bytes:
    """symbols (count,), each under L -> stream."""
    lanes = _encode_numpy(symbols, runs) if constriction is None else _encode_constriction(symbols, runs)
    lengths = np.array([len(words) for words in lanes[:-1]], "<u2")
    return b"".join([lengths.tobytes(), *(words.astype("<u4", copy=False).tobytes() for words in lanes)])


def decode(stream: bytes, runs: Runs) -> NDArray[np.uint8]:
    """Stream -> symbols (count,). Raises CodecError for bytes that `encode` does not make of any symbols.

    Time and memory are bounded by the count of symbols, whatever the bytes.
    """
    if constriction is None:
        return _decode_numpy(_split(stream, runs.count), runs)
    decoder = Decoder(stream, runs.tables, runs.count)
    symbols = decoder.take(np.diff(runs.bounds))
    decoder.close()
    return symbols


class Decoder:
    """Decodes piece by piece, where what was decoded says by which tables to go on.

    tables: all that may be asked for; count: of the symbols of the whole stream.
    """

    def __init__(self, stream: bytes, tables: Sequence[tuple[int, ...]], count: int) -> None:
        """Raises CodecError, before memory is taken, for bytes that cannot be so many symbols."""
        self._lanes, self._tables, self._count = _split(stream, count), tables, count
        self._done = 0
        self._coder: Any = None
        self._model = _starts if constriction is None else _model

    def take(self, sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The next symbols: sizes[0] of the first table, and so on. Raises CodecError as `decode` does."""
        symbols, at = np.empty(int(sizes.sum()), np.uint8), 0
        for table in np.flatnonzero(sizes).tolist():
            end = at + int(sizes[table])
            while at < end:
                if self._done % LANE == 0:
                    self._open()
                size = min(end - at, LANE - self._done % LANE)
                symbols[at : at + size] = self._coder.decode(self._model(self._tables[table]), size)
                at, self._done = at + size, self._done + size
        return symbols

    def close(self) -> None:
        """Raises CodecError where the last lane does not end with its last symbol."""
        if self._coder is not None and not self._coder.is_empty():
            raise _unfinished((self._done - 1) // LANE)

    def _open(self) -> None:
        self.close()
        words = self._lanes[self._done // LANE]
        self._coder = _Scalar(words) if constriction is None else constriction.stream.stack.AnsCoder(words)


def _split(stream: bytes, count: int) -> list[NDArray[np.uint32]]:
    lanes = -(-count // LANE)
    head = 2 * max(lanes - 1, 0)
    if len(stream) < head or (len(stream) - head) % 4 or (lanes == 0 and stream):
        raise CodecError(f"{len(stream)} bytes are not the lengths and whole words of {lanes} lanes")
    words = np.frombuffer(stream[head:], "<u4").astype(np.uint32, copy=False)
    ends = np.cumsum(np.frombuffer(stream[:head], "<u2"), dtype=np.int64)
    if lanes > 1 and ends[-1] > len(words):
        raise CodecError(f"lanes of {ends[-1]} words in a stream of {len(words)}, {len(stream)} bytes")
    parts = np.split(words, ends) if lanes else []
    for lane, part in enumerate(parts):
        if len(part) and part[-1] == 0:
            raise CodecError(f"lane {lane} ends in a zero word")
    return parts


def _unfinished(lane: int) -> CodecError:
    return CodecError(f"lane {lane} does not end with its last symbol: damaged, or coded by other tables")


@lru_cache(maxsize=8192)
def _model(table: tuple[int, ...]) -> Any:
    # constriction gives each symbol one part of 2^24 and shares the rest by the weights, here without any rounding.
    weights = np.array(table, np.float64) * (2**24 // TOTAL) - 1
    return constriction.stream.model.Categorical(weights, perfect=False)


def _encode_constriction(symbols: NDArray[np.uint8], runs: Runs) -> list[NDArray[np.uint32]]:
    lanes = []
    for lane in range(runs.lanes()):
        coder = constriction.stream.stack.AnsCoder()
        for table, start, stop in reversed(runs.within(lane)):
            coder.encode_reverse(symbols[start:stop].astype(np.int32), _model(runs.tables[table]))
        lanes.append(coder.get_compressed())
    return lanes


class _Scalar:
    """One symbol after the other, as constriction's `AnsCoder` decodes them: a microsecond each."""

    def __init__(self, words: NDArray[np.uint32]) -> None:
        self._words, self._x = words.tolist(), 0
        self._refill()
        self._refill()

    def decode(self, starts: list[int], count: int) -> list[int]:
        """starts: of each symbol's slots and, last, the end of all."""
        symbols = []
        for _ in range(count):
            quantile = self._x & 2**24 - 1
            symbol = bisect_right(starts, quantile >> 8) - 1
            width, start = starts[symbol + 1] - starts[symbol] << 8, starts[symbol] << 8
            self._x = (self._x >> 24) * width + quantile - start
            self._refill()
            symbols.append(symbol)
        return symbols

    def is_empty(self) -> bool:
        return not self._x and not self._words

    def _refill(self) -> None:
        if self._x < 2**32 and self._words:
            self._x = self._x << 32 | self._words.pop()


@lru_cache(maxsize=8192)
def _starts(table: tuple[int, ...]) -> list[int]:
    return [0, *accumulate(table)]


class _Slots:
    """All tables as one ascending list of slots, 65536 each, to look up in with one search."""

    def __init__(self, runs: Runs) -> None:
        levels = max(map(len, runs.tables))
        rows = np.array([(*table, *[0] * (levels - len(table))) for table in runs.tables], np.uint64)
        starts = np.cumsum(rows, axis=1) - rows
        self._runs, self._levels = runs, levels
        self._ascending = (starts + np.arange(len(rows), dtype=np.uint64)[:, None] * np.uint64(TOTAL)).reshape(-1)
        self.width, self.start = (rows << _SHIFT).reshape(-1), (starts << _SHIFT).reshape(-1)  # p and c

    def table(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._runs.table(np.searchsorted(self._runs.bounds, positions, "right") - 1)

    def of(self, symbols: NDArray[np.uint8], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.table(positions) * self._levels + symbols

    def at(self, quantiles: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
        wanted = (quantiles >> _SHIFT) + self.table(positions).astype(np.uint64) * np.uint64(TOTAL)
        return np.searchsorted(self._ascending, wanted, "right") - 1

    def symbol(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        return slots % self._levels


def _encode_numpy(symbols: NDArray[np.uint8], runs: Runs) -> list[NDArray[np.uint32]]:
    slots, lanes = _Slots(runs), runs.lanes()
    x, words = np.zeros(lanes, np.uint64), np.zeros((lanes, min(runs.count, LANE) // 2 + 3), np.uint32)
    written = np.zeros(lanes, np.int64)
    for step in reversed(range(min(runs.count, LANE))):
        positions = np.arange(step, runs.count, LANE)  # one in each lane; a shorter last lane has fewer
        slot = slots.of(symbols[positions], positions)
        p, state = slots.width[slot], x[: len(positions)]
        full = np.flatnonzero(state >> np.uint64(40) >= p)
        words[full, written[full]] = state[full].astype(np.uint32)
        written[full] += 1
        state[full] >>= _LOW
        state[:] = (state // p << _QUANTILE) + slots.start[slot] + state % p
    for _ in range(2):
        some = np.flatnonzero(x)
        words[some, written[some]] = x[some].astype(np.uint32)
        written[some] += 1
        x >>= _LOW
    return [row[:size] for row, size in zip(words, written, strict=True)]


def _decode_numpy(lanes: list[NDArray[np.uint32]], runs: Runs) -> NDArray[np.uint8]:
    slots, symbols = _Slots(runs), np.empty(runs.count, np.uint8)
    words = np.concatenate([np.zeros(0, np.uint32), *lanes]).astype(np.uint64)
    ends = np.cumsum([0, *map(len, lanes)])
    floor, at = ends[:-1], ends[1:].copy()  # words of a lane are taken from its end
    x = np.zeros(len(lanes), np.uint64)
    for _ in range(2):
        _refill(x, words, floor, at)
    for step in range(min(runs.count, LANE)):
        positions = np.arange(step, runs.count, LANE)
        working = len(positions)  # the lanes that have one
        state = x[:working]
        quantiles = state & np.uint64(2**24 - 1)
        slot = slots.at(quantiles, positions)
        symbols[positions] = slots.symbol(slot)
        state[:] = (state >> _QUANTILE) * slots.width[slot] + quantiles - slots.start[slot]
        _refill(state, words, floor[:working], at[:working])
    for lane in np.flatnonzero((x != 0) | (at > floor)):
        raise _unfinished(int(lane))
    return symbols


def _refill(x: NDArray[np.uint64], words: NDArray[np.uint64], floor: NDArray[np.int64], at: NDArray[np.int64]) -> None:
    low = np.flatnonzero((x < _WORD) & (at > floor))
    at[low] -= 1
    x[low] = x[low] << _LOW | words[at[low]]
