"""The sending end of a stream."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bitseam import config
from bitseam.quant import Quantized, RateFSQ
from bitseam.streams.build import build_quantizer
from bitseam.streams.coded import as_told, decode, encode
from bitseam.streams.end import End
from bitseam.streams.tables import Fit
from bitseam.streams.through_codec import ThroughChanges, ThroughCodec
from bitseam.wire import messages_pb2 as pb


class Sender(End):
    """Features (..., D) -> levels (..., C) -> coded message; and the coded gradient that comes back.

    rate: in use. What the other side must know to read the codes, statistics, directions and tables, comes from `news`
    as it changes; what it has been told is remembered until `forget`.
    """

    def __init__(self, name: str, number: int, settings: config.Stream, width: int) -> None:
        """As `End`."""
        super().__init__(name, number, settings, width)
        self.quantizer = build_quantizer(settings, width, self.codec(0))
        self.rate = 0
        self.forget()

    def forget(self) -> None:
        """Begin with another side, which has been told nothing; tables are then renewed once they no longer fit."""
        self.forget_samples()
        self._told: dict[str, bytes] = {}
        self._fits = [Fit() for _ in range(self.rates)]

    def use(self, rate: int) -> None:
        """Quantize and code at a rate, at the prices of its tables. Raises CodecError for one not agreed."""
        codec = self.entropy_codec(rate)
        if isinstance(self.quantizer, RateFSQ) and codec is not None:
            self.quantizer.use(codec.clip, codec.prices(self.quantizer.channels))
        self.rate = rate

    def begin(self, seed: int | None, samples: tuple[int, ...] = ()) -> None:
        """Before a batch of training.

        seed: of what a codec draws at random, so that it is the same when a step is taken again; None takes PyTorch's
        own generator. samples: numbers of the images, where a codec sends what has changed of each.
        """
        if isinstance(self.quantizer, ThroughCodec):
            self.quantizer.seed = seed
        if isinstance(self.quantizer, ThroughChanges):
            self.quantizer.samples = samples

    @property
    def remembers(self) -> bool:
        """Whether the two ends have to remember the same samples."""
        return isinstance(self.quantizer, ThroughChanges)

    def forget_samples(self) -> None:
        """Send whole again what was sent before."""
        if isinstance(self.quantizer, ThroughChanges):
            self.quantizer.forget()

    def calibrate(self, features: Tensor) -> None:
        """Fit the quantizer to features (..., D), and have the next `news` hold new tables."""
        self.quantizer.calibrate(features)
        self.forget()
        self._fits = [Fit(lost=math.inf) for _ in self._fits]

    def forward(self, features: Tensor) -> Quantized:
        """Features (..., D) -> levels (..., C) at the rate in use, with a straight-through gradient."""
        return self.quantizer(features)

    def news(self, quantized: Quantized) -> pb.Statistics | None:
        """What the other side must know to read these codes and does not: statistics in use, tables that pay."""
        news = self.untold(self._told)
        if self.renew(quantized) and (codec := self.entropy_codec(self.rate)) is not None:
            news.tables.add(rate=self.rate, frequencies=codec.table_bytes())
        if not news.ListFields():
            return None
        news.stream = self.number
        return news

    def untold(self, told: dict[str, bytes]) -> pb.Statistics:
        """Statistics and directions in use that are not in `told`, by field; they are then put there."""
        news = pb.Statistics()
        for parts in self.known():
            if any(told.get(part) != raw for part, raw in parts.items()):
                told |= parts
                news.MergeFrom(pb.Statistics(**parts))  # type: ignore[arg-type]
        return news

    def renew(self, quantized: Quantized) -> bool:
        """Count these codes, and code by new tables from now on where they pay; returns whether they do."""
        if (codec := self.entropy_codec(self.rate)) is None:
            return False
        renewed = self._fits[self.rate].renewed(codec, codec.counts(quantized.levels))
        if renewed is None:
            return False
        self.keep_tables(renewed.table_bytes(), self.rate)
        return True

    def encode(self, quantized: Quantized) -> pb.Coded:
        """Codes as a message, at the rate in use."""
        if quantized.payload is not None:
            coded = pb.Coded(shape=list(quantized.levels.shape), payload=quantized.payload)
        else:
            coded = encode(self.codec(self.rate), quantized.levels)
        coded.stream, coded.rate = self.number, self.rate
        coded.samples.extend(quantized.samples)
        return coded

    def predicted_bytes(self, quantized: Quantized) -> float | None:
        """What the tables in use say that the codes take; None where there are none."""
        codec = self.entropy_codec(self.rate)
        return None if codec is None else codec.bits(codec.counts(quantized.levels)) / 8

    def gradient(self, coded: pb.Coded, quantized: Quantized) -> Tensor:
        """The gradient by the levels (..., C) that came back. Raises CodecError."""
        levels = quantized.levels
        return decode(self.gradient_codec, coded, tuple(levels.shape), f"gradient of {self.name}", levels.device)

    def state(self) -> dict[str, Tensor]:
        """What is remembered from step to step beside the weights, for `restore`."""
        state: dict[str, Tensor] = {}
        for rate in range(self.rates):
            if self.entropy_codec(rate) is not None:
                state[f"{rate}.counts"] = torch.from_numpy(self._fits[rate].counts)
                state[f"{rate}.lost"] = torch.tensor(self._fits[rate].lost, dtype=torch.float64)
        if isinstance(self.quantizer, ThroughChanges):
            state |= self.quantizer.changes.state()
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken, with another side that has been told nothing."""
        self.forget()
        for rate in range(self.rates):
            if self.entropy_codec(rate) is not None:
                self._fits[rate] = Fit(state[f"{rate}.counts"].numpy(), float(state[f"{rate}.lost"]))
        if isinstance(self.quantizer, ThroughChanges):
            self.quantizer.changes.restore(state)

    def known(self) -> list[dict[str, bytes]]:
        """What the other side must know of the quantizer, as it travels; what belongs together."""
        return as_told(self.quantizer.statistics(), self.quantizer.rotation())
