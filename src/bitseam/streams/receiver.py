"""The receiving end of a stream."""

from __future__ import annotations

import torch
from torch import Tensor

from bitseam import config
from bitseam.codecs import Delta
from bitseam.codecs.delta import Changes
from bitseam.errors import CodecError
from bitseam.quant import LevelProjection
from bitseam.quant.finite import require_usable
from bitseam.streams.build import build_projection
from bitseam.streams.coded import decode, encode
from bitseam.streams.stream import Stream
from bitseam.wire import messages_pb2 as pb


class Receiver(Stream):
    """Coded message -> levels (..., C) -> features (..., D); and the gradient by the levels, coded, on the way back."""

    def __init__(self, name: str, number: int, settings: config.Stream, width: int) -> None:
        """As `Stream`."""
        super().__init__(name, number, settings, width)
        self.projection = build_projection(settings, width)

    def learn(self, told: pb.Statistics) -> None:
        """Read codes made with these statistics and tables from now on. Raises CodecError for what cannot be."""
        for tables in told.tables:
            self.keep_tables(tables.frequencies, tables.rate)
        if not (told.mean or told.rotation):
            return
        if not isinstance(self.projection, LevelProjection):
            raise CodecError(f"{self.name}: statistics for a quantizer that has none")
        try:
            if told.rotation:
                self.projection.rotate(_tensor(told.rotation, torch.int8))
            if told.mean:
                self.projection.calibrate(_tensor(told.mean, torch.float32), _tensor(told.std, torch.float32))
        except CodecError as error:
            raise type(error)(f"{self.name}: {error}") from error

    def changes(self) -> Changes | None:
        """A memory for the samples of a client, where the codec sends what has changed of each; else None."""
        codec = self.codec(0)
        return codec.changes() if isinstance(codec, Delta) else None

    def decode(
        self,
        coded: pb.Coded,
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        known: Changes | None = None,
    ) -> Tensor:
        """A message of so many tokens (...) -> levels (..., C) on the device. Raises CodecError for anything else.

        known: what is remembered of a client's samples, where it trains, for `changes`; then it is advanced.
        """
        codec, shape = self.codec(coded.rate), (*shape, self.channels)
        if known is not None:
            levels = self._changed(known, coded, shape).to(device)
        elif coded.samples:
            raise CodecError(f"{self.name} codes: numbers of samples, where nobody remembers them")
        else:
            levels = decode(codec, coded, shape, f"{self.name} codes", device)
        if not isinstance(self.projection, LevelProjection):  # these are features; levels are no larger than the clip
            require_usable(levels, f"{self.name} codes")
        return levels

    def _changed(self, known: Changes, coded: pb.Coded, shape: tuple[int, ...]) -> Tensor:
        if tuple(coded.shape) != shape or len(coded.samples) != shape[0]:
            raise CodecError(
                f"{self.name} codes: shape {tuple(coded.shape)} of {len(coded.samples)} samples where {shape} is due"
            )
        levels, at = torch.empty(shape), 0
        for sample, into in zip(coded.samples, levels, strict=True):
            end = at + known.message_bytes(sample, shape[1:])
            into.copy_(known.decode(sample, coded.payload[at:end], shape[1:]))
            at = end
        if at != len(coded.payload):
            raise CodecError(f"{self.name} codes: {len(coded.payload)} bytes where {at} are due")
        return levels

    def forward(self, levels: Tensor) -> Tensor:
        """Levels (..., C) -> features (..., D)."""
        return self.projection(levels)

    def encode_gradient(self, levels: Tensor, generator: torch.Generator | None = None) -> pb.Coded:
        """The gradient by the levels (..., C) as a message; zeros where the loss does not feel them.

        generator: of the random numbers that stochastic rounding draws.
        """
        gradient = levels.grad if levels.grad is not None else torch.zeros_like(levels)
        coded = encode(self.gradient_codec, gradient, generator)
        coded.stream = self.number
        return coded


def remember(known: pb.Calibrate, news: pb.Calibrate) -> None:
    """Lay over what was told before what has been told now: whole statistics, and the tables of a rate."""
    if news.dictionary:
        known.dictionary = news.dictionary
    for told in news.streams:
        kept = next((k for k in known.streams if k.stream == told.stream), None) or known.streams.add()
        tables = {table.rate: table.frequencies for table in (*kept.tables, *told.tables)}
        del kept.tables[:]
        kept.MergeFrom(pb.Statistics(stream=told.stream, mean=told.mean, std=told.std, rotation=told.rotation))
        for rate in sorted(tables):
            kept.tables.add(rate=rate, frequencies=tables[rate])


def _tensor(raw: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype)
