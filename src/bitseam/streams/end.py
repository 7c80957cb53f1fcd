"""What both ends of a stream have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from bitseam import config
from bitseam.codecs import Codec, EntropyUniform, canonical
from bitseam.errors import CodecError
from bitseam.streams.build import build_codecs, channels_of

S = TypeVar("S", bound="End")


class End(nn.Module):
    """One kind of tensor on its way: how it is coded, and with which tables.

    number: the stream's in messages. tables: uint8 (rates, bytes as they travel), the frequencies of each rate where
    the codec is `entropy-uniform`, equal ones until calibrated; a half's checkpoints have them.
    """

    direction: ClassVar[str] = "up"
    tables: Tensor | None

    def __init__(self, name: str, number: int, settings: config.Stream, width: int) -> None:
        """width: D of the features. Raises ConfigError for what no codec or quantizer is."""
        super().__init__()
        self.name, self.number, self.settings, self.width = name, number, settings, width
        self.channels = channels_of(settings, width)
        rates, self.gradient_codec = build_codecs(name, settings)
        self._rates = list(rates)
        self.codec_terms = [canonical(codec.config()) for codec in rates]  # before any tables
        tables = [list(codec.table_bytes()) for codec in rates if isinstance(codec, EntropyUniform)]
        self.register_buffer("tables", torch.tensor(tables, dtype=torch.uint8) if tables else None)
        self.register_load_state_dict_post_hook(_use_loaded_tables)

    @property
    def codec_id(self) -> str:
        """Of features, at every rate."""
        return self._rates[0].codec_id

    @property
    def rates(self) -> int:
        """How many rates were agreed, from 0 on."""
        return len(self._rates)

    def codec(self, rate: int) -> Codec:
        """That of a rate, with the tables that the half keeps. Raises CodecError for a rate not agreed."""
        if not 0 <= rate < len(self._rates):
            raise CodecError(f"{self.name}: rate {rate} where {len(self._rates)} were agreed, from 0 on")
        return self._rates[rate]

    def entropy_codec(self, rate: int) -> EntropyUniform | None:
        """As `codec`, where it has tables; else None."""
        codec = self.codec(rate)
        return codec if isinstance(codec, EntropyUniform) else None

    def most_bytes(self, shape: Sequence[int]) -> int:
        """Of a payload of features or a gradient of this shape (..., C), at any rate."""
        return max(codec.payload_bytes(shape) for codec in (*self._rates, self.gradient_codec))

    def keep_tables(self, raw: bytes, rate: int) -> None:
        """Code by these tables, as they travel, from now on. Raises CodecError where none are due or for wrong ones."""
        codec = self.entropy_codec(rate)
        if codec is None or self.tables is None:
            raise CodecError(f"{self.name}: tables for a codec that has none")
        self._rates[rate] = codec.with_tables(raw)
        self.tables[rate].copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))


def _use_loaded_tables(stream: End, _: object) -> None:
    """Code by the tables of a checkpoint that has just been loaded."""
    for rate, codec in enumerate(stream._rates):
        if isinstance(codec, EntropyUniform) and stream.tables is not None:
            stream._rates[rate] = codec.with_tables(stream.tables[rate].cpu().numpy().tobytes())


def build_streams(kind: type[S], streams: Mapping[str, config.Stream], width: int) -> dict[str, S]:
    """One end of all that crosses, by name, in the order that numbers them."""
    return {name: kind(name, number, settings, width) for number, (name, settings) in enumerate(streams.items())}


def agreed(streams: Mapping[str, End]) -> dict[str, str]:
    """The terms that both sides must have alike of what crosses, as flat text."""
    terms = {"streams": " ".join(streams)}
    for name, stream in streams.items():
        terms[f"stream.{name}.direction"] = stream.direction
        terms[f"stream.{name}.channels"] = str(stream.channels)
        for rate in range(stream.rates):
            terms[f"stream.{name}.codec.{rate}"] = stream.codec_terms[rate]
        terms[f"stream.{name}.gradient"] = canonical(stream.gradient_codec.config())
    return terms
